"""Templates are foreign code: what they may do, and what is kept from them."""

from __future__ import annotations

from typing import Any

import pytest

from graft_scheduler.rendering import bounds
from graft_scheduler.rendering.templates import ChatTemplates

HELLO = [{"role": "user", "content": "Hello"}]


def render(source: str, messages: list[dict[str, Any]] = HELLO, tools: Any = None, **variables: Any) -> str:
    return ChatTemplates(source, variables).render(messages, tools, add_generation_prompt=False)


def refusal(source: str) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever Jinja and Python raise
        render(source)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}{{ messages.__class__.__base__ }}",
        "{{ raise_exception.__globals__['x'] }}",
        "{{ strftime_now.__globals__['datetime'] }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__class__.__init__ }}{{ (dict|attr('__class__')).mro() }}",
        "{{ '{0.__class__.__mro__[1]}'.format(messages) }}",
        "{{ cycler.__init__.__globals__.os.popen('id') }}",
        "{{ self._TemplateReference__context.environment }}",
        "{% set x = namespace(__class__=1) %}",
        "{% set x = namespace() %}{% set x._y = 1 %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% include 'config.json' %}",
        "{% import '/etc/passwd' as x %}",
    ],
)
def test_a_template_reaches_nothing_but_what_it_is_given(source: str) -> None:
    assert refusal(source).split(":")[0] in ("SecurityError", "UndefinedError", "TypeError")


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f2() }}{{ f2() }}{% endmacro %}"
        + "".join(
            f"{{% macro f{n} () %}}{{{{ f{n + 1}() }}}}{{{{ f{n + 1}() }}}}{{% endmacro %}}"
            for n in range(2, 40)
        )
        + "{% macro f40 () %}{% endmacro %}{{ f() }}",
        "{% for a in range(60000) recursive %}{% if loop.depth < 9 %}{{ loop(range(9)) }}{% endif %}"
        "{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST_STEPS", 20_000)

    assert refusal(source) == "TemplateBound: it does not end within 20,000 steps or 10 seconds"


def test_a_template_whose_steps_take_long_is_stopped_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST_SECONDS", 0.05)
    work = "{% if range(9999) | list | length %}{% endif %}"

    found = refusal("{% for i in range(99999) %}" + work + "{% endfor %}")

    assert found.startswith("TemplateBound: it does not end within 200,000 steps")


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10 ** 9 }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 10 ** 9 * 'x' }}",
        "{{ (9 ** 99) ** 9999 }}",
        "{% set n = namespace(s='xx') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='xx') %}{% for i in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s='xx') %}"
        "{% for i in range(64) %}{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
        "{% set n = namespace(s=3) %}{% for i in range(64) %}{% set n.s = n.s * n.s %}{% endfor %}",
        "{% macro f(s) %}{{ f(s ~ s) }}{% endmacro %}{{ f('xx') }}",
        "{% for s, t in [('xx', 1)] recursive %}{{ loop([(s ~ s, t)]) }}{% endfor %}",
        "{% set s = 'x' * 10 ** 6 %}{% for i in range(99) %}{{ s }}{% endfor %}",
    ],
)
def test_a_template_makes_no_text_or_number_of_any_size(source: str) -> None:
    assert refusal(source).split(":")[0] in ("SecurityError", "TemplateBound")


def test_a_template_that_never_ends_is_not_tried_for_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST_STEPS", 50)
    templates = ChatTemplates("{% for i in range(messages|length * 30) %}{% endfor %}ok", {})
    long, short = HELLO * 2, HELLO

    assert templates.render(short, None, add_generation_prompt=False) == "ok"
    for _ in range(bounds.ENDLESS):
        with pytest.raises(bounds.TemplateBound, match="does not end"):
            templates.render(long, None, add_generation_prompt=False)
    with pytest.raises(bounds.TemplateBound, match="did not end for several chats before"):
        templates.render(short, None, add_generation_prompt=False)


def test_a_long_chat_is_within_the_bounds() -> None:
    source = "{% macro show(m) %}{{ m.role ~ m['content'] }}{% endmacro %}" + (
        "{% for m in messages %}{% for n in [m] %}{{ show(n) }}{% endfor %}{% endfor %}"
    )

    assert render(source, HELLO * 20_000) == "userHello" * 20_000


def test_blocks_are_trimmed_and_loops_controlled() -> None:
    source = (
        "  {% for m in messages %}\n"
        "    {% if m.role == 'system' %}\n{% continue %}\n{% endif %}\n"
        "{{ m.content }}\n"
        "    {% if m.content == 'b' %}{% break %}{% endif %}\n"
        "  {% endfor %}\n"
    )
    messages = [
        {"role": role, "content": text} for role, text in (("system", "s"), ("user", "a"), ("user", "b"))
    ]

    assert render(source, [*messages, *messages]) == "a\nb\n"


def test_json_is_written_as_it_is_and_not_for_web_pages() -> None:
    tools = [{"name": "<ä&'>", "b": 1, "a": [None, True]}]

    assert render("{{ tools[0] | tojson }}", tools=tools) == '{"name": "<ä&\'>", "b": 1, "a": [null, true]}'
    assert render("{{ tools[0].a | tojson(indent=1) }}", tools=tools) == "[\n null,\n true\n]"


def test_a_thought_goes_by_any_of_its_names_and_a_null_is_no_field() -> None:
    source = "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}|{{ 'content' in messages[0] }}"

    for name in ("reasoning", "thinking", "reasoning_content"):
        assert render(source, [{"role": "assistant", name: "hm", "content": None}]) == "hm|hm|False"


def test_a_field_named_as_a_method_is_reached_as_python_reaches_it() -> None:
    messages = [{"role": "user", "items": "field"}]

    assert render("{{ messages[0]['items'] }} {{ messages[0].items() | length }}", messages) == "field 2"


def test_what_is_no_json_is_only_named_to_the_template() -> None:
    class Dangerous:
        def save(self, path: str) -> None:
            raise AssertionError("a template called it")

    messages = [{"role": "user", "content": Dangerous()}]

    assert render("{{ messages[0].content }}", messages) == "<Dangerous>"
    with pytest.raises(Exception, match="has no attribute 'save'"):
        render("{{ messages[0].content.save('x') }}", messages)


def test_tools_that_are_no_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="`tools` must be a list of objects"):
        render("{{ tools }}", tools=["f"])
