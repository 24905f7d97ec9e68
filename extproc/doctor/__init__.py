"""Looks at a whole deployment and says what is wrong with it and how to mend it.

`gather` asks everybody once (evidence.py's values); each check is a pure function of that evidence. Owns
nothing that runs: it changes nothing, and sends a prompt only where it was asked to.
"""
