"""The view from outside: a process of its own, that no worker's GIL can silence."""
