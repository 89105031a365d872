"""Tables in, figures and HTML out."""
