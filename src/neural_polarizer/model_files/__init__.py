"""Model files, ours and those of others: read, checked and written. A file is hostile: nothing in it is ever executed.

``checkpoints`` turns bytes into tensors. ``record`` is what our own files say about their model, ``foreign`` what is to
be made of other files. ``load`` builds the network and fills it; it, ``check`` and ``save`` are for callers.
"""
