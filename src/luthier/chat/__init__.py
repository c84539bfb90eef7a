"""Chat templates: the form in which they want messages, what they write, and where answers stand in it."""
