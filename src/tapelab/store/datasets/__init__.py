"""Recordings and imported ticks, as versions of immutable segments."""
