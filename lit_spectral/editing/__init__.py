"""Editing facts: what an adapter that was taught other answers says, and what it says where it was taught nothing."""
