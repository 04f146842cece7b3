"""Pools: how close each is to saturation, who waits for it, who holds what is in it.

``meter`` is the one shape all pools are measured in; each other file knows one library.
"""
