"""Unlearning: from caption pairs to erased text encoders."""
