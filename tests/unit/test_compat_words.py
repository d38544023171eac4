"""The words of a command line: flags in every spelling, files, overrides, and what is wrong with them."""

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from danlu.cli.compat import render_resolved, resolve_train
from danlu.cli.compat.train import train_vocabulary
from danlu.cli.compat.vocabulary import Name, describe, truth
from danlu.cli.compat.words import key_lines, read_words
from danlu.core.errors import ConfigError, UsageError

VOCABULARY = train_vocabulary()


def words(*given):
    return read_words(given, VOCABULARY)


def values(*given):
    return {item.key: item.value for item in words(*given).given}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (["--fp16"], True),
        (["--fp16", "true"], True),
        (["--fp16", "1"], True),
        (["--fp16", "yes"], True),
        (["--fp16=True"], True),
        (["--fp16", "false"], False),
        (["--fp16", "0"], False),
        (["--fp16", "no"], False),
        (["--no_fp16"], False),
        (["--no-fp16"], False),
    ],
)
def test_truth_values(written, value):
    assert values(*written) == {"fp16": value}


@pytest.mark.parametrize(
    "written",
    [
        ["--lora_rank", "4"],
        ["--lora-rank", "4"],
        ["--lora_rank=4"],
        ["--lora.lora_rank", "4"],
        ["--lora_ran", "4"],
    ],
)
def test_spellings_of_a_flag(written):
    assert values(*written) == {"lora_rank": "4"}


def test_an_abbreviation_is_noted():
    assert words("--per_device_train_batch", "2").notes == [
        "--per_device_train_batch was read as --per_device_train_batch_size"
    ]


def test_an_ambiguous_abbreviation_names_its_meanings():
    with pytest.raises(ConfigError, match="per_device_eval_batch_size, per_device_train_batch_size"):
        words("--per_device", "2")


def test_a_flag_followed_by_a_file_or_an_override(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("dataset: x\n")
    found = words("--fp16", str(path), "--lora_target", "q", "v", "seed=3")
    assert found.file == path
    assert [(item.key, item.value) for item in found.given] == [
        ("dataset", "x"),
        ("fp16", True),
        ("lora_target", ["q", "v"]),
        ("seed", 3),
    ]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (["--lora_target", "q,v"], "q,v"),
        (["--lora_target", "q", "v"], ["q", "v"]),
        (["--lora_target", "q,k", "v"], ["q", "k", "v"]),
        (["--lr_scheduler_kwargs", '{"a": 1}'], {"a": 1}),
        (["--gradient_checkpointing_kwargs", '{"use_reentrant": false}'], {"use_reentrant": False}),
        (["--resume_from_checkpoint", "null"], None),
        (["--resume_from_checkpoint", "true"], True),
        (["--num_layer_trainable", "-3"], "-3"),
        (["--max_samples", "none"], None),
        (["--dataset", "a=b"], "a=b"),
        (["--report_to", "none"], "none"),
    ],
)
def test_values(written, value):
    assert next(iter(values(*written).values())) == value


def test_old_scripts_names_are_skipped():
    found = words("src/train_bash.py", "--do_train")
    assert found.notes == ["src/train_bash.py: the script's name is not needed and was skipped"]


def test_dry_run_is_told_apart():
    assert words("--dry-run", "--seed", "1").dry_run
    assert words("--seed", "1", "--dry_run").dry_run
    assert not words("--seed", "1").dry_run


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (["word"], "'word' is neither a configuration file nor an option"),
        (["a.yaml", "b.yaml"], "two configuration files"),
        (["--lora_targt", "x"], "there is no option 'lora_targt'. Did you mean lora_target"),
        (["--dataset"], "--dataset needs a value"),
        (["--learning_rate", "--fp16"], "--learning_rate needs a value"),
        (["--fp16", "maybe"], "'maybe' is neither true nor false"),
        (["--fp16=2"], "'2' is neither true nor false"),
        (["--"], "there is no option ''"),
        (["=3"], "not of the form key=value"),
        (["lora.rank=3"], "the group lora has no key 'rank'"),
        (["lora=3"], "lora is a group of options and needs a mapping. Its options: lora_rank"),
        (["trainer=3"], "trainer is a mapping"),
        (["seed=[1"], "cannot be read"),
        (["--lr_scheduler_kwargs", "{a"], "the value '{a' is not valid JSON"),
    ],
)
def test_what_is_wrong_is_named(written, message):
    with pytest.raises(UsageError) as caught:
        words(*written)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "a.yaml:2: seed is given twice. It is also at line 1."),
        ("seed: 1\ncompute: {seed: 2}\n", "a.yaml:2: seed is given twice."),
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "this is a list"),
        ("lora: {rank: 3}\n", "a.yaml:1: the group lora has no key 'rank'"),
        ("sed: 1\n", "a.yaml:1: this configuration has no key 'sed'. Did you mean seed"),
        ("trainer: {adam_beta9: 1}\n", "no 'adam_beta9'. Did you mean adam_beta2 or adam_beta1"),
        ("trainer: {seed: 1}\n", "seed has a field of its own. Write compute.seed."),
        ("seed: x\n", "a.yaml:1:seed: a whole number is expected (got 'x')."),
        ("lr_scheduler_type: cosin\n", "Did you mean cosine"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        resolve_train([str(path), "dataset=x"])
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        resolve_train([str(tmp_path / "none.yaml")])
    (tmp_path / "latin.yaml").write_bytes(b"dataset: \xff\xfe\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve_train([str(tmp_path / "latin.yaml")])


def test_a_file_with_a_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfdataset: x\r\nseed: 3\r\n")
    assert resolve_train([str(path)]).config.compute.seed == 3
    assert key_lines(path) == {"dataset": 1, "seed": 2}


def test_nothing_at_all():
    with pytest.raises(UsageError, match="there is no configuration"):
        resolve_train([])


def test_groups_may_be_written_in_every_way(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("lora: {lora_rank: 4}\ndata.dataset: x\nseed: 1\noptimizer:\n")
    found = resolve_train([str(path), "lora.lora_rank=5", "compute={seed: 2}"]).config
    assert (found.lora.lora_rank, found.data.dataset, found.compute.seed) == (5, ("x",), 2)


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (bool, "bool"),
        (bool | None, "bool"),
        (int, "integer"),
        (float | None, "number"),
        (str | bool | None, "any"),
    ],
)
def test_kinds_of_fields(annotation, kind):
    assert describe(annotation)[0] == kind


def test_kinds_of_known_options():
    kinds = {name: VOCABULARY.names[name].kind for name in ("lora_target", "max_samples", "adam_beta1", "tf32")}
    assert kinds == {"lora_target": "list", "max_samples": "integer", "adam_beta1": "number", "tf32": "bool"}
    assert VOCABULARY.names["eval_strategy"] == Name("text", nullable=False)
    assert VOCABULARY.names["trainer"].kind == "mapping"


@settings(deadline=None)
@given(st.sampled_from(["true", "yes", "on", "1", "y", "t"]), st.booleans())
def test_truth_ignores_case(word, upper):
    assert truth(word.upper() if upper else word, "x") is True


@settings(deadline=None)
@given(st.sampled_from(sorted(VOCABULARY.names)))
def test_every_known_name_is_its_own_full_name(name):
    assert VOCABULARY.full_name(name, "x") == (name, False)


@settings(deadline=None)
@given(st.lists(st.text(max_size=12), max_size=5))
def test_any_words_give_a_configuration_or_a_usage_error(given_words):
    try:
        resolved = resolve_train(given_words)
    except UsageError:
        return
    assert resolved.config.data.dataset


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=3,
)


@settings(deadline=None, max_examples=400)
@given(values=st.dictionaries(st.sampled_from(sorted(VOCABULARY.names)), VALUES, min_size=1, max_size=3))
@example(values={"quantization_bit": [], "name_module_trainable": None})
@example(values={"do_predict": True, "name_module_trainable": None})
def test_any_value_of_any_key_gives_a_configuration_or_a_usage_error(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump({"dataset": "a", "do_train": True, **values}, allow_unicode=True), encoding="utf-8")
    try:
        resolved = resolve_train([str(path)])
    except UsageError as error:
        assert str(path) in str(error) or error.hint
        return
    assert render_resolved(resolved)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(VOCABULARY.names)),
            st.sampled_from(["1", "true", "x", "a,b", "{}", "{a", ""]),
        ),
        max_size=4,
    )
)
def test_any_flag_with_any_value_gives_a_configuration_or_a_usage_error(pairs):
    flags = [word for name, value in pairs for word in (f"--{name}", value)]
    try:
        resolve_train(["--do_train", *flags])
    except UsageError as error:
        assert error.exit_code == 2
