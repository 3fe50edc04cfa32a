"""cache-dit's calibrators: what is put in the place of skipped blocks, a predictor of ours."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import ClassVar, cast

from dit_cachegraph.compat.options import Options
from dit_cachegraph.config import resolve
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.catalog import PREDICTORS
from dit_cachegraph.policy.checks import check_bool
from dit_cachegraph.policy.predictors.calibrator import Calibrator
from dit_cachegraph.policy.predictors.replay import Replay


def _defaults(predictor: str, *, is_on: bool = True) -> Mapping[str, object]:
    own = {f.name: f.default for f in fields(PREDICTORS[predictor])}  # type: ignore[arg-type]
    switches = {"enable_calibrator": is_on, "enable_encoder_calibrator": is_on}
    rest = {"calibrator_type": predictor, "calibrator_kwargs": MappingProxyType({})}
    return MappingProxyType({**own, **switches, **rest})


class CalibratorConfig(Options):
    """A forecast by name (`calibrator_type`), off unless `enable_calibrator` is given."""

    defaults: ClassVar[Mapping[str, object]] = _defaults("taylorseer", is_on=False)

    def settings(self) -> dict[str, object]:
        """The same for `configure`.

        Raises:
            InvalidConfig: something that no predictor of ours has.
        """
        settings = super().settings()
        kind = settings.pop("calibrator_type", self.defaults["calibrator_type"])
        is_on = settings.pop("enable_calibrator", self.defaults["enable_calibrator"])
        check_bool("enable_calibrator", is_on)
        if settings.pop("calibrator_kwargs", None):
            raise InvalidConfig("calibrator_kwargs: give these options by their own names instead")
        if not is_on and self.given().get("enable_encoder_calibrator"):
            raise InvalidConfig(
                "enable_encoder_calibrator without enable_calibrator: only all streams, or the "
                "image's alone, can be forecast"
            )
        return {"predictor": kind, **settings} if is_on else {"predictor": "replay"}

    def by_name(self) -> dict[str, object]:
        settings = self.settings()
        predictor = cast(Replay | Calibrator, resolve(settings).predictor)
        return {**settings, **asdict(predictor)}

    def strify(self) -> str:
        """A short name, for a file; empty where nothing is forecast."""
        return "" if self.settings()["predictor"] == "replay" else self._short_name()

    def _short_name(self) -> str:
        return str(self.settings()["predictor"])


class TaylorSeerCalibratorConfig(CalibratorConfig):
    """TaylorSeer."""

    defaults: ClassVar[Mapping[str, object]] = _defaults("taylorseer")

    def _short_name(self) -> str:
        return f"T1O{self.as_dict()['taylorseer_order']}"


class DMDCalibratorConfig(CalibratorConfig):
    """Dynamic mode decomposition."""

    defaults: ClassVar[Mapping[str, object]] = _defaults("dmd")

    def _short_name(self) -> str:
        return f"DMDH{self.as_dict()['dmd_history']}"


class FoCaCalibratorConfig(CalibratorConfig):
    """FoCa."""

    defaults: ClassVar[Mapping[str, object]] = _defaults("foca")

    def _short_name(self) -> str:
        return "FoCa"
