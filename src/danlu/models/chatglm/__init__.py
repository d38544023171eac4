"""Models published in the ChatGLM layout, made into models that transformers has built in."""
