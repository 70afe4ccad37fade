"""Ranks of one model: processes that hold a share of every layer each and add up what they computed."""
