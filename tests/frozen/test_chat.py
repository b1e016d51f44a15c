"""A chat prompt is one user turn in the tokenizer's template, begun once, up to where the model answers."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from detjac_lanczos.errors import InputError
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.operators import detach
from tests import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")

SPECIAL = ["<unk>", "<s>", "</s>", "<user>", "<assistant>", "<system>"]
WORDS = [*SPECIAL, "the", "bridge", "is", "out"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }} {{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(template: Any) -> Any:
    """Return a tokenizer that begins every text with <s>, as many do."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=template,
    )


def loaded(template: Any = TEMPLATE) -> LoadedModel:
    return load_model(tiny_models.llama(), tokenizer(template))


def test_a_chat_prompt_is_one_turn_that_waits_for_its_answer() -> None:
    network = detach(loaded(), ["the bridge is out", "out"], chat=True)
    tokens = [[WORDS[i] for i in prompt.ids] for prompt in network.prompts]
    assert tokens == [
        ["<s>", "<user>", "the", "bridge", "is", "out", "</s>", "<assistant>"],
        ["<s>", "<user>", "out", "</s>", "<assistant>"],
    ]
    assert [prompt.text for prompt in network.prompts] == ["the bridge is out", "out"]
    same = detach(loaded(), "out", chat=True, add_special_tokens=False)
    assert same.prompts[0].ids == network.prompts[1].ids


def test_a_plain_prompt_is_begun_by_the_tokenizer() -> None:
    assert detach(loaded(), "the bridge").prompts[0].ids == (1, 6, 7)
    assert detach(loaded(), "the bridge", add_special_tokens=False).prompts[0].ids == (6, 7)


def test_the_default_of_several_templates_is_taken() -> None:
    network = detach(loaded({"default": TEMPLATE, "tool_use": "the"}), "out", chat=True)
    assert network.prompts[0].ids == (1, 3, 9, 2, 4)


PARTS = "{% for m in messages %}<user> {% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endfor %}"
FIRST_PART = "{{ '<user> out ' + messages[0].content[0].text }}"


@pytest.mark.parametrize("template", [PARTS + " out", FIRST_PART])
def test_a_template_that_takes_content_in_parts_is_given_the_text_as_one(template: str) -> None:
    ids = detach(loaded(template), "out", chat=True).prompts[0].ids
    assert sorted(ids) == [3, 9, 9]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template; leave chat off"),
        ("{{ raise_exception('a system turn comes first') }}", r"\(a system turn comes first\); leave chat off"),
        ("{% for %}", "takes no single user turn"),
        ({"tool_use": TEMPLATE}, "takes no single user turn"),
        ("{{ bos_token }}<user> out", r"\(what it makes does not hold the text as it is\); leave chat off"),
        ("{{ messages[0].content[:2] }}", r"does not hold the text as it is"),
        ("{{ messages[0].content | upper }}", r"does not hold the text as it is"),
        ("{{ messages[0].content if messages[0].content is not string }}", r"does not hold the text as it is"),
        ("{{ messages[0].content + 1 }}", r"takes no single user turn \(.*\); leave chat off"),
        ("{{ 1 // (messages | length - 1) }}", r"takes no single user turn \(.*zero\); leave chat off"),
    ],
)
def test_templates_that_cannot_be_used_are_one_line(template: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        detach(loaded(template), "out", chat=True)
    assert "\n" not in str(caught.value)


def test_chat_goes_with_text() -> None:
    with pytest.raises(InputError, match="chat goes with a prompt of text"):
        detach(loaded(), input_ids=[6, 7], chat=True)
    with pytest.raises(InputError, match="no tokenizer"):
        detach(load_model(tiny_models.llama()), "out", chat=True)
