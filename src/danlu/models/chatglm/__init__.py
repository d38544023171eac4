"""ChatGLM-6B, ChatGLM2-6B and ChatGLM3-6B, and what was trained on them with the scripts of their time."""
