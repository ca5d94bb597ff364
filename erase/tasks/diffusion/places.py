"""Where the weights of a pipeline read what a projection may take out."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from erase.core.activations import projectable_layers
from erase.core.names import filter_names, lora_holds
from erase.models.family import Family

TEXT = "text"
TIME_EMBEDDERS = ("time_emb", "timestep_embedder", "guidance_embedder", "resolution_embedder")


@dataclass(frozen=True)
class EditSites:
    """The places of a family's pipeline where `editable` weights read, by target."""

    family: Family
    components: Mapping[str, nn.Module]
    editable: Mapping[str, nn.Parameter]

    @property
    def targets(self) -> list[str]:
        """What reads the text itself, each text encoder, all of the denoiser."""
        parts = {TEXT: self.family.denoiser} | {name: name for name in self.family.encoders}
        parts[self.family.denoiser] = self.family.denoiser
        return [target for target, part in parts.items() if part in self.components]

    def sites(self, target: str) -> dict[str, list[str]]:
        """The places of a target, and which weights read there; ValueError if there are none."""
        if target not in self.targets:
            others = f", or of the targets {', '.join(self.targets)}" if self.targets else ""
            raise ValueError(
                f"The components {', '.join(self.components)} have no target {target}; choose "
                f"other components{others}."
            )
        if target != TEXT:
            return {name: [f"{name}.weight"] for name in self.layers(target)}
        enters = self.family.enters.items()  # the denoiser
        read = {site: [*filter_names(self.editable, patterns)] for site, patterns in enters}
        if not any(read.values()):
            raise ValueError(
                f"No weight of {', '.join(self.components)} that reads the text itself may "
                "change; widen include, or choose other components."
            )
        return {site: names for site, names in read.items() if names}

    def layers(self, component: str) -> dict[str, nn.Module]:
        """The layers that may change, read something of the prompt, and fit a LoRA."""
        weights = {name for name in self.editable if lora_holds(name)}
        return {
            name: layer
            for name, layer in projectable_layers(self.components[component], component).items()
            if f"{name}.weight" in weights and not any(part in name for part in TIME_EMBEDDERS)
        }
