"""The semantic cache: an answer given to a question that asks the same in other words.

Owns what is known of each question that was answered, and how often what it would have given was right. Which
questions differ whatever an embedding says is core/cachekeys/guards'; the embedding is a process of its own.
"""
