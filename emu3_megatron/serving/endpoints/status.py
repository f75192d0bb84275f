"""Which model is served, whether it is, and metrics."""

from typing import Any

from emu3_megatron.serving.calls import Call
from emu3_megatron.serving.outlet import Outlet
from emu3_megatron.serving.service import Service
from emu3_megatron.vision.tokenizer import SPATIAL_FACTOR


async def models(service: Service, call: Call, outlet: Outlet) -> None:
    """GET /v1/models"""
    await outlet.json({"object": "list", "data": [_describe(service)]})


async def model(service: Service, call: Call, outlet: Outlet) -> None:
    """GET /v1/models/NAME"""
    service.check_model(call.names["model"])
    await outlet.json(_describe(service))


async def health(service: Service, call: Call, outlet: Outlet) -> None:
    """GET /health: 200, or 503 when nothing is served."""
    service.check_ready()
    await outlet.json({"status": "ok"})


async def metrics(service: Service, call: Call, outlet: Outlet) -> None:
    """GET /metrics"""
    await outlet.content(service.metrics.page(), "text/plain; version=0.0.4; charset=utf-8")


def _describe(service: Service) -> dict[str, Any]:
    model = service.model
    height, width = model.grid
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "emu3-megatron",
        "max_model_len": model.context,
        "default_size": f"{SPATIAL_FACTOR * width}x{SPATIAL_FACTOR * height}",
        "default_guidance": model.guidance,
    }
