"""A small shop that shows loopscope at work: real service, real PostgreSQL, real load.

``python -m demo_app`` starts everything, drives load at it and prints what loopscope saw.
``service.py`` is the part to read first: it is what a service of yours would look like.
"""
