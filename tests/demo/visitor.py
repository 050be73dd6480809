"""A visitor of the demo who sends requests by hand."""

import json
import secrets
from http.client import HTTPConnection
from io import BytesIO

import numpy as np
from PIL import Image


def image_file(height=20, width=30):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Visitor:
    """Keeps the cookie of the server on `port`, as a browser does."""

    def __init__(self, port):
        self.port, self.cookie, self.session = port, None, secrets.token_hex(5)

    def request(self, method, path, body=None, **headers):
        """Returns status and content."""
        if self.cookie:
            headers["Cookie"] = self.cookie
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        self.cookie = (response.getheader("Set-Cookie") or self.cookie or "").split(";")[0]
        content = response.read()
        connection.close()
        return response.status, content

    def upload(self, content, name="photo.png"):
        """Returns status and path, or the message."""
        head = f'--cut\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body, kind = head + content + b"\r\n--cut--\r\n", "multipart/form-data; boundary=cut"
        status, answer = self.request("POST", "/gradio_api/upload", body, **{"Content-Type": kind})
        return status, json.loads(answer)[0] if status == 200 else answer.decode()

    def join(self, data, **fields):
        """Sends the event of a new image, and returns status and message."""
        config = json.loads(self.request("GET", "/config")[1])
        index = max(config["dependencies"], key=lambda entry: len(entry["outputs"]))["id"]
        body = json.dumps({"fn_index": index, "session_hash": self.session, "data": data, **fields})
        status, answer = self.request("POST", "/gradio_api/queue/join", body, **{"Content-Type": "application/json"})
        return status, answer.decode()

    def predict(self, path):
        """Returns the output of the page for a file, as the browser receives it."""
        status, message = self.join([path and {"path": path}])
        assert status == 200, message
        _, stream = self.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
        messages = [json.loads(line.removeprefix("data: ")) for line in stream.decode().splitlines() if line]
        return next(message["output"] for message in messages if message["msg"] == "process_completed")
