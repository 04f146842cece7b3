"""The directory that ``loopscope run`` puts on ``PYTHONPATH``; nothing else may be in it."""
