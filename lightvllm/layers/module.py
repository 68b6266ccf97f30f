"""The base of all layers."""

from typing import Any

from torch import nn


class Module(nn.Module):
    """An `nn.Module` that, once it serves, costs what a plain object costs.

    A step calls some two hundred modules and looks up four hundred of their parts, each about a microsecond in
    `nn.Module`: a tenth of a step of a small model.
    """

    _is_settled = False

    def settle(self) -> None:
        """From now on parts are found at once, hooks are not looked for, and parameters stay the objects they are."""
        self.__dict__.update(self._modules)
        self.__dict__.update(self._parameters)
        self._is_settled = True

    def __call__(self, *args: Any) -> Any:
        """`forward`"""
        return self.forward(*args) if self._is_settled else super().__call__(*args)
