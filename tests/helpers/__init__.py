"""What test files have in common: no test file imports another."""

import pytest

pytest.register_assert_rewrite(
    *(f"helpers.{name}" for name in ("commands", "disturbed", "distributed", "hostile", "runs"))
)
