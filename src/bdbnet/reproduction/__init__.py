"""Reproduction of the paper's tables and figures: their trainings, their state, and the tables written from them."""
