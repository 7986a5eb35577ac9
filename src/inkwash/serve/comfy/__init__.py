"""ComfyUI's dialect: graphs are queued by /prompt, told of by /ws and /history, and looked at by /view."""

from fastapi import APIRouter

from inkwash.serve.comfy import graphs, krita, nodes, pictures, socket

router = APIRouter(tags=["ComfyUI"])
for part in (graphs, pictures, nodes, krita, socket):
    router.include_router(part.router)
