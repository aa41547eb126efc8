# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from typing import Any

import pytest

from orinkit.errors import BundleError, RequestError
from orinkit.runtime import template
from orinkit.runtime.template import ChatTemplate

MESSAGES = [{"role": "user", "content": "<b> & 'ü'"}, {"role": "assistant", "content": "yes"}]

LOOP_CONTROLS = """
{%- for i in range(9) %}
{%- if i == 2 %}{% continue %}{% endif %}
{%- if i == 4 %}{% break %}{% endif %}
{{- i }}
{%- endfor %}"""


def render(source: str, **variables: str) -> str:
    return ChatTemplate(source, variables).render(MESSAGES)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}{{ m.role }}|{{ m['content'] }}\n{% endfor %}", "user|<b> & 'ü'\nassistant|yes\n"),
        ("{% if add_generation_prompt %}A{% endif %}", "A"),
        ("{{ bos_token }}{{ pad_token }}{{ eos_token }}", "<s></s>"),
        ("{{ messages[0].content | tojson }}", "\"<b> & 'ü'\""),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        (LOOP_CONTROLS, "013"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("a{% generation %}b{{ messages | length }}{% endgeneration %}c", "ab2c"),
        ("{% if tools %}T{% endif %}{% if documents is none %}-{% endif %}", "-"),
        ("{% set a = namespace(n=0) %}{% for m in messages %}{% set a.n = a.n + 3 * 2 %}{% endfor %}{{ a.n }}", "12"),
        ("{% macro f(x) %}[{{ x.strip() }}]{% endmacro %}{{ f(' a ') }}", "[a]"),
        ("{{ messages[-1:][0].content.upper() }}", "YES"),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
        ("{% for m in messages recursive %}{{ loop.index }}{% endfor %}", "12"),
    ],
)
def test_what_hugging_face_templates_expect(source: str, expected: str) -> None:
    assert render(source, bos_token="<s>", eos_token="</s>") == expected


def test_the_template_may_refuse_the_messages() -> None:
    with pytest.raises(RequestError, match="refuses these messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("source", ["{% if %}", "{{ 'a' ", "{% unknown %}", "{% for x in y %}"])
def test_what_is_no_template_is_refused_when_it_is_opened(source: str) -> None:
    with pytest.raises(BundleError, match="chat template: expected Jinja"):
        ChatTemplate(source, {})


@pytest.mark.parametrize("source", ["{{ nobody.name }}", "{{ 1 / 0 }}", "{% include 'x' %}", "{{ 'a' + 1 }}"])
def test_a_template_that_fails_is_the_fault_of_the_bundle(source: str) -> None:
    with pytest.raises(BundleError, match="chat template: it fails"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
    ],
)
def test_attributes_of_the_machinery_are_refused(source: str) -> None:
    """Case A28."""
    with pytest.raises(BundleError, match="is not allowed"):
        render(source)


DOUBLING = "{% set a = namespace(x='1234') %}{% for i in range(23) %}{% set a.x = a.x ~ a.x %}{% endfor %}{{ a.x }}"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", r"operator \*\* is not allowed"),
        ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
        (ENDLESS, "ran longer"),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(99) }}", "ran longer"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for i in range(99999) %}{{ '" + "x" * 1000 + "' }}{% endfor %}", "wrote more than"),
        (DOUBLING, "wrote more than"),
        ("{{ 'a' * 1000000000 }}", r"operator \* is for numbers"),
        ("{{ [0] * 1000000000 }}", r"operator \* is for numbers"),
    ],
)
def test_time_and_output_are_bounded(source: str, message: str) -> None:
    """Case A28."""
    with pytest.raises(BundleError, match=message):
        render(source)


def test_the_deadline_is_that_of_each_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a second rendering starts anew, and the first look after the deadline ends it."""
    now = [0.0]

    def tell() -> float:
        now[0] += 0.1
        return now[0]

    monkeypatch.setattr(time, "monotonic", tell)
    compiled = ChatTemplate("{% for i in range(n | int) %}{% endfor %}ok", {"n": "2"})
    assert [compiled.render([]) for _ in range(5)] == ["ok"] * 5
    with pytest.raises(BundleError, match=f"longer than {template.MAX_SECONDS} s"):
        ChatTemplate("{% for i in range(99) %}{% endfor %}ok", {}).render([])


def test_the_name_of_the_clock_is_reserved() -> None:
    with pytest.raises(BundleError, match="reserved name"):
        ChatTemplate("{% set _orin_tick = 1 %}", {})


def test_messages_are_left_as_they_are() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
    ChatTemplate("{% for m in messages %}{% set m = 1 %}{% endfor %}", {}).render(messages)
    assert messages == [{"role": "user", "content": "x"}]
