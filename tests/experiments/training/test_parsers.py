"""The parsers of generated answers on worked examples; a new rule needs a new name."""

from __future__ import annotations

import pytest

from experiments.config.task import PARSERS as NAMES
from experiments.training.parsers import PARSERS

OPTIONS = ["answer1", "answer2", "answer12"]
READ = [
    ("exact_v1", " 12 \n", "12"),
    ("exact_v1", "  ", None),
    ("first_option_v1", "answer2 is wrong, answer1", "answer2"),
    ("first_option_v1", "the correct answer is answer12", "answer1"),  # LLM-Adapters' rule has no word boundary
    ("first_option_v1", "Answer1", None),
    ("first_word_option_v1", "the correct answer is answer12", "answer12"),
    ("first_word_option_v1", "Answer1.", "answer1"),
    ("first_word_option_v1", "answer3", None),
    ("last_number_v1", "3 + 4 = 7, so 1,234.50 in all.", "1234.50"),
    ("last_number_v1", "at -5", "-5"),
    ("last_number_v1", "none", None),
    ("hash_v1", "so 3\n#### 1,200 and #### 7", "1200"),
    ("hash_v1", "#### $-3.5", "-3.5"),
    ("hash_v1", "The answer is: 3", None),
    ("gsm8k_v1", "The answer is: 3. The answer is: $1,024 dollars", "1024"),
    ("gsm8k_v1", "The answer is: 7/2", "7/2"),
    ("gsm8k_v1", "steps\n#### 18", "18"),
    ("gsm8k_v1", "It is 18", None),
    ("gsm8k_v1", "The answer is: unknown", None),
    ("metamath_v1", "So... The answer is: 12.", "12"),
    ("metamath_v1", "The answer is: 3\nThe answer is: 4!\nmore", "4"),
    ("metamath_v1", "#### 5\nThe answer is 6", "6"),  # in the order of the phrases, not of the text
    ("metamath_v1", "The answer is: $1,000.", "1,000"),
    ("metamath_v1", r"\boxed{7}", None),
    ("math_v1", r"so \boxed{\frac{1}{2}}. The answer is: \frac{3}{4}.", r"\frac{3}{4}"),
    ("math_v1", "The answer is: $x^2 + 1$\nQuestion: more", "x^2 + 1"),
    ("math_v1", r"The answer is: $\boxed{(1, \sqrt{2})}$", r"(1, \sqrt{2})"),
    ("math_v1", r"first \boxed{1}, then \fbox{2^{10}}", "2^{10}"),
    ("math_v1", r"never closed \boxed{1", None),
    ("math_v1", "The answer is 7", None),
    (
        "code_block_v1",
        "So:\n```python\ndef f(x):\n    return x\n```\nand\n```python\nno\n```",
        "\ndef f(x):\n    return x",
    ),
    ("code_block_v1", "```python\ndef f():\n    return 1\n\nassert f() == 1\n```", "\ndef f():\n    return 1"),
    (
        "code_block_v1",
        "```py\ndef f():\n    assert True\n\n# Example usage\nf()",
        "\ndef f():\n    assert True",
    ),  # unclosed
    ("code_block_v1", "\n    return x\nif __name__ == '__main__':\n    f()", "\n\n    return x"),  # no fence
    ("code_block_v1", "```python\n\n```", None),
    ("code_completion_v1", "    y = x\n    return y\n\n\ndef g():\n    pass", "    y = x\n    return y"),
    ("code_completion_v1", "    return x\nprint(f(1))", "    return x"),
    ("code_completion_v1", "\n# nothing", None),
]
EQUAL = [
    ("exact_v1", "7", "7", True),
    ("exact_v1", "7", "7.0", False),
    ("last_number_v1", "7.0", "7", True),
    ("last_number_v1", "1000", "1,000", True),
    ("gsm8k_v1", "17.6", "18", True),  # rounded to an integer
    ("gsm8k_v1", "7/2", "4", True),
    ("gsm8k_v1", "1/0", "0", False),
    ("metamath_v1", "1/4", "0.25", True),
    ("metamath_v1", "1,000", "1000", False),  # thousands commas stay, as in PEFT's comparison
    ("metamath_v1", "x + 1", "x + 1", True),
    ("hash_v1", "12.00", "12", True),
    ("math_v1", r"\dfrac12", r"\frac{1}{2}", True),
    ("math_v1", "1/2", r"\frac{1}{2}", True),
    ("math_v1", "0.5", r"\frac{1}{2}", True),
    ("math_v1", ".5", "0.5", True),
    ("math_v1", r"\left(3, \sqrt2\right)", r"(3,\sqrt{2})", True),
    ("math_v1", r"x = 5", "5", True),
    ("math_v1", r"90^\circ", "90", True),
    ("math_v1", r"12\text{ cm}", "12", True),
    ("math_v1", r"50\%", "50", True),
    ("math_v1", "5.0", "5", False),  # texts are compared, not values
    ("math_v1", "2x+1", "1+2x", False),
]


@pytest.mark.parametrize(("name", "text", "answer"), READ)
def test_a_parser_reads_what_its_rule_says(name, text, answer):
    assert PARSERS[name].parse(text, OPTIONS) == answer


@pytest.mark.parametrize(("name", "answer", "reference", "same"), EQUAL)
def test_a_parser_compares_as_its_rule_says(name, answer, reference, same):
    assert PARSERS[name].equal(answer, reference) is same


def test_every_name_that_a_task_may_give_has_a_parser():
    assert tuple(PARSERS) == NAMES
