"""AST's network: transformers' ASTForAudioClassification for waveforms of any length. Imports torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import ASTConfig, ASTForAudioClassification
from transformers.models.audio_spectrogram_transformer import modeling_audio_spectrogram_transformer as upstream

from sousa_engine.backbones.spec import Variant
from sousa_engine.backbones.waveforms import TakesWaveforms


class ASTEmbeddings(upstream.ASTEmbeddings):
    """Position embeddings fitted to the clip's number of time patches; parameters and names are transformers' own.

    The table has one row for each of F x T patches (frequency first, time second) after the two special tokens. A clip
    with t < T time patches gets the t columns in the middle, from T//2 - t//2 on; for t > T the table is stretched
    linearly in time. The authors' code does the same for other lengths. With t = T the sum equals transformers' own.
    """

    def forward(self, input_values: Tensor) -> Tensor:
        """input_values: (batch, frames, mel bins). Returns (batch, 2 + F * t, hidden size)."""
        patches = self.patch_embeddings(input_values)
        specials = torch.cat((self.cls_token, self.distillation_token), dim=1).expand(len(patches), -1, -1)
        positions = self.positions(patches.shape[1])
        return self.dropout(torch.cat((specials, patches), dim=1) + positions)

    def positions(self, patches: int) -> Tensor:
        """Rows of the table for this many patches, special tokens first: (1, 2 + patches, hidden size)."""
        rows, columns = self.get_shape(self.config)
        wanted = patches // rows
        if wanted == columns:
            return self.position_embeddings
        table = self.position_embeddings[:, 2:].unflatten(1, (rows, columns))
        if wanted < columns:
            first = columns // 2 - wanted // 2
            fitted = table[:, :, first : first + wanted]
        else:
            stretched = nn.functional.interpolate(table.permute(0, 3, 1, 2), size=(rows, wanted), mode="bilinear")
            fitted = stretched.permute(0, 2, 3, 1)
        return torch.cat((self.position_embeddings[:, :2], fitted.flatten(1, 2)), dim=1)


class AST(TakesWaveforms, ASTForAudioClassification):
    """transformers' network with its front end. Gong et al. 2021."""

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.audio_spectrogram_transformer(x).pooler_output)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Patches averaged over frequency (batch, time patches, hidden size); the mean of the two special tokens."""
        body = self.audio_spectrogram_transformer
        out = body(x)
        rows, _ = body.embeddings.get_shape(self.config)
        return out.last_hidden_state[:, 2:].unflatten(1, (rows, -1)).mean(1), out.pooler_output


def network(variant: Variant, num_classes: int, seed: int) -> nn.Module:
    """A newly initialised network, the same for the same seed; the global random state is unchanged."""
    config = ASTConfig(**{**variant.architecture, "num_labels": num_classes})
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = AST(config)
        module.front_end = variant.front_end
        embeddings = ASTEmbeddings(config)
        embeddings.load_state_dict(module.audio_spectrogram_transformer.embeddings.state_dict(), assign=True)
        # transformers leaves these at zero, and a frozen random backbone would keep them there: it could not tell when
        # a stroke occurs. The authors' code initialises them randomly.
        for token in (embeddings.cls_token, embeddings.distillation_token, embeddings.position_embeddings):
            nn.init.trunc_normal_(token, std=0.02)
    module.audio_spectrogram_transformer.embeddings = embeddings
    return module
