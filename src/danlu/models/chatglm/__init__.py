"""ChatGLM of 2023, read from the original folders without their code."""
