"""What holds for every test: one thread, no hub, no window, and the same few examples from hypothesis."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis

# `quick` takes the same few examples each time; `make test-full` asks for `slow`: many, and new ones.
hypothesis.settings.register_profile("quick", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.register_profile("slow", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("quick")
