"""AUTOMATIC1111's dialect: /sdapi/v1, and the other paths that its clients ask for."""

from fastapi import APIRouter

from inkwash.serve.sdapi import control, drawing, extras, lists, options, progress

router = APIRouter(tags=["AUTOMATIC1111"])
for part in (drawing, progress, options, lists, extras, control):
    router.include_router(part.router)
