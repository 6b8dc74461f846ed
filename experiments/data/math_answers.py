r"""Final answers of mathematical solutions: the one in \boxed{}, and one spelling for those that mean the same.

The rules are those of Hendrycks et al., "Measuring Mathematical Problem Solving With the MATH Dataset" (arXiv
2103.03874), whose comparison is by text: it accepts fewer answers than computer algebra would.
"""

from __future__ import annotations

import re

SAME = (
    ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""),
    ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""), ("\\%", ""), ("%", ""),
)  # fmt: skip


def boxed(solution: str) -> str | None:
    r"""What stands in the last \boxed{...} or \fbox{...}, whose braces may be nested; None where there is none."""
    found = list(re.finditer(r"\\(?:boxed|fbox)\s*\{", solution)) or list(re.finditer(r"\\boxed (?=\S)", solution))
    if not found:
        return None
    start = found[-1].end()
    if solution[start - 1] != "{":  # "\boxed 5"
        return solution[start:].split("$")[0].strip()
    depth = 1
    for place in range(start, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[place], 0)
        if depth == 0:
            return solution[start:place]
    return None


def normal(answer: str) -> str:
    r"""An answer in LaTeX in one spelling: "\dfrac12", "1/2" and "0.5" are all "\frac{1}{2}"."""
    for old, new in SAME:
        answer = answer.replace(old, new)
    answer = answer.split("\\text{ ")[0]  # a unit
    answer = re.sub(r"(^|[ {])\.(?=\d)", r"\g<1>0.", answer)
    left, equals, right = answer.partition("=")
    if equals and "=" not in right and len(left.strip()) <= 2:  # "x = 5"
        answer = right
    answer = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", answer).replace(" ", "")
    answer = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", answer)
    answer = re.sub(r"\\frac(\w)\{", r"\\frac{\1}{", answer)
    answer = re.sub(r"(\\frac\{[^{}]*\})(\w)", r"\1{\2}", answer)
    if answer == "0.5":
        answer = "1/2"
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", answer)
