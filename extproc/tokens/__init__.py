"""Exact counts of prompts with the model's own tokenizer, each text counted once.

Owns the cutting of texts, the counts that are kept, and what a template adds to them. Nothing here is counted
on the event loop: what is not known yet is estimated now, and known the next time.
"""
