"""What a model makes of caption pairs: features and hidden states."""

from __future__ import annotations

from torch import Tensor


class Encodings:
    """A model's encodings of n caption pairs.

    They hold what the method's `needs` ask for; reading anything else raises LookupError. `prompts`,
    unit-norm features of a prompt of every class (classes, projection), and `label`, the class of each
    pair (n,), are None unless the data is labelled; only retain pairs have the prompts.
    """

    def __init__(
        self,
        text: Tensor | None = None,
        image: Tensor | None = None,
        hidden_states: Tensor | None = None,
        prompts: Tensor | None = None,
        label: Tensor | None = None,
    ) -> None:
        self._tensors = {"text": text, "image": image, "hidden_states": hidden_states}
        self.prompts, self.label = prompts, label

    @property
    def text(self) -> Tensor:
        """Unit-norm caption features, (n, projection)."""
        return self._tensor("text")

    @property
    def image(self) -> Tensor:
        """Unit-norm image features, (n, projection)."""
        return self._tensor("image")

    @property
    def hidden_states(self) -> Tensor:
        """Hidden states that the U-Net reads, (n, tokens, width)."""
        return self._tensor("hidden_states")

    @property
    def candidates(self) -> Tensor:
        """The features that an image is compared with: of all class prompts, else of the captions."""
        return self.text if self.prompts is None else self.prompts

    def with_text(
        self, text: Tensor, hidden_states: Tensor | None, prompts: Tensor | None
    ) -> Encodings:
        """The same images with other encodings of the captions."""
        return Encodings(text, self._tensors["image"], hidden_states, prompts, self.label)

    def _tensor(self, name: str) -> Tensor:
        if (tensor := self._tensors[name]) is None:
            raise LookupError(f"{name} was not computed; the method's `needs` do not ask for it")
        return tensor
