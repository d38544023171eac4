"""How an exported model is used, in a few lines of each tool that reads it."""

from __future__ import annotations

from collections.abc import Iterable

CHAT = """```python
from transformers import pipeline

chat = pipeline("text-generation", model="{name}")
print(chat([{{"role": "user", "content": "Hello!"}}])[0]["generated_text"][-1]["content"])
```"""

TEXT = """```python
from transformers import pipeline

write = pipeline("text-generation", model="{name}")
print(write("Once upon a time")[0]["generated_text"])
```"""

REWARD = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSequenceClassification.from_pretrained("{name}")
messages = [{{"role": "user", "content": "Hello!"}}, {{"role": "assistant", "content": "Hello, what can I do?"}}]
inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
print(model(**inputs).logits[0, 0])
```"""

WITH_CODE = """The weights have the names and shapes of the model's first release, for programs that run that release's
code (`trust_remote_code=True`)."""

OLLAMA = """With Ollama, in this folder:

```sh
ollama create {stem} -f Modelfile
ollama run {stem}
```

With llama.cpp: `llama-cli -m {file}`. With danlu: `danlu chat --model {file}`."""


def usage(name: str, form: str, *, files: Iterable[str], kept: bool, has_template: bool) -> str:
    """The section of a model card that shows how to load the model.

    Args:
        name: of the folder.
        form: ``safetensors``, ``original``, ``gguf`` or ``classifier``.
        files: of the folder.
        kept: whether an adapter stands beside the base.
        has_template: whether the tokenizer has a chat template.
    """
    if form == "gguf":
        file = next(item for item in files if item.endswith(".gguf"))
        return OLLAMA.format(file=file, stem=file.removesuffix(".gguf"))
    if form == "classifier":
        return REWARD.format(name=name)
    if kept:
        return (
            f"The adapter stands in the folder `adapter` and is used together with the base model in this one:\n\n"
            f"```sh\ndanlu chat --model {name} --adapter {name}/adapter\n```"
        )
    danlu = f"```sh\ndanlu chat --model {name}\n```\n\n"
    if form == "original":
        return danlu + WITH_CODE
    return danlu + (CHAT if has_template else TEXT).format(name=name)
