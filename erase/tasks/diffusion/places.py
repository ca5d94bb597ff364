"""What may change in a pipeline, and where it reads what a projection may take out."""

from torch import nn

from erase.core.activations import projectable_layers
from erase.core.names import filter_names, lora_holds, named_parameters
from erase.models.family import Family
from erase.models.lazy import is_left
from erase.tasks.diffusion.config import DiffusionTaskConfig
from erase.tasks.diffusion.denoiser import ConditionedDenoiser

TEXT = "text"
TIME_EMBEDDERS = ("time_emb", "timestep_embedder", "guidance_embedder", "resolution_embedder")


class EditedPipeline:
    """The parts of a family's pipeline that may change as the config says."""

    family: Family
    denoiser: ConditionedDenoiser
    config: DiffusionTaskConfig

    @property
    def components(self) -> dict[str, nn.Module]:
        """The modules that hold what may change."""
        names = self.config.components or self.family.components
        return {name: getattr(self.denoiser.pipeline, name) for name in names}

    @property
    def frozen(self) -> dict[str, nn.Module]:
        """The pipeline's other modules, which take part unchanged."""
        named = self.denoiser.pipeline.components.items()
        return {n: m for n, m in named if isinstance(m, nn.Module) and n not in self.components}

    def parameters(self) -> dict[str, nn.Parameter]:
        """The tensors that training changes, by canonical name such as `unet.conv_in.weight`.

        Those are what the config includes, or of all what reads the text.
        """
        editable = self.editable()
        return editable if self.config.include else filter_names(editable, self.family.reads_text)

    def editable(self) -> dict[str, nn.Parameter]:
        """All tensors that may change."""
        own = named_parameters(self.components).items()
        denoiser = self.denoiser.modules[self.family.denoiser]
        everything = {n: w for n, w in own if not (w.is_meta and is_left(denoiser))}
        return filter_names(everything, self.config.include or ("*",), self.config.exclude)

    @property
    def targets(self) -> list[str]:
        """Parts a projection may edit: what reads the text itself, text encoders, the denoiser."""
        parts = {TEXT: self.family.denoiser} | {name: name for name in self.family.encoders}
        parts[self.family.denoiser] = self.family.denoiser
        return [target for target, part in parts.items() if part in self.components]

    def sites(self, target: str) -> dict[str, list[str]]:
        """The places of a target, and which editable weights read there; ValueError if none do."""
        if target not in self.targets:
            others = f", or of the targets {', '.join(self.targets)}" if self.targets else ""
            raise ValueError(
                f"The components {', '.join(self.components)} have no target {target}; choose "
                f"other components{others}."
            )
        if target != TEXT:
            return {name: [f"{name}.weight"] for name in self._layers(target)}
        editable, enters = self.editable(), self.family.enters.items()  # the denoiser
        read = {site: [*filter_names(editable, patterns)] for site, patterns in enters}
        if not any(read.values()):
            raise ValueError(
                f"No weight of {', '.join(self.components)} that reads the text itself may "
                "change; widen include, or choose other components."
            )
        return {site: names for site, names in read.items() if names}

    def _layers(self, component: str) -> dict[str, nn.Module]:
        """The layers that may change, read something of the prompt, and fit a LoRA."""
        weights = {name for name in self.editable() if lora_holds(name)}
        return {
            name: layer
            for name, layer in projectable_layers(self.components[component], component).items()
            if f"{name}.weight" in weights and not any(part in name for part in TIME_EMBEDDERS)
        }
