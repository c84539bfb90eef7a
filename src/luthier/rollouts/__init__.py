"""Which continuations of a prompt, judged how, and which then next: strategies and advantages."""
