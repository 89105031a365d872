"""The web page of `tapelab ui`: thin Streamlit pages around the public names."""
