"""The server's application for another ASGI server: granian --interface asgi asgi_app:app."""

import os
from functools import partial

from m2m100_onnx.server.app import make_app, make_service
from m2m100_onnx.server.engine import open_all
from m2m100_onnx.server.settings import Limits, Settings

bundles = [os.environ["BUNDLE"]]
settings = Settings(Limits(texts=256))
app = make_app(make_service(partial(open_all, bundles, {}), settings, threads=2))
