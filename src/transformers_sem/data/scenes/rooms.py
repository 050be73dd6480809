"""Rooms: their size, the camera and the placement of furniture and people."""

from dataclasses import dataclass, replace

import numpy as np

from .classes import CLASS_NAMES
from .furniture import FURNITURE, build_chair, build_door, build_picture, build_rug, build_window, make_primitive, move
from .geometry import Camera, Primitive, rotate_pitch, rotate_yaw
from .materials import sample_material
from .person import build_person


@dataclass(frozen=True)
class Room:
    """The interior of the box from `low` to `high`, both `(3,)`."""

    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A camera, primitives and the position of the light `(3,)`."""

    camera: Camera
    primitives: list[Primitive]
    light: np.ndarray


def sample_room(rng: np.random.Generator) -> Room:
    """Draws a room whose back wall is 2.6 to 7 m in front of the camera."""
    low = np.array([-rng.uniform(1.4, 2.8), -rng.uniform(2.4, 2.9), -rng.uniform(0.5, 1.0)])
    return Room(low, np.array([rng.uniform(1.4, 2.8), 0.0, rng.uniform(2.6, 7.0)]))


def sample_camera(rng: np.random.Generator) -> Camera:
    """Draws a camera 1.2 to 1.65 m above the floor that looks slightly down."""
    yaw, pitch = np.deg2rad(rng.uniform(-22.0, 22.0)), np.deg2rad(rng.uniform(2.0, 18.0))
    origin = np.array([0.0, -rng.uniform(1.2, 1.65), 0.0])
    return Camera(origin, rotate_yaw(yaw) @ rotate_pitch(pitch), np.tan(np.deg2rad(rng.uniform(56.0, 72.0)) / 2.0))


class RoomBuilder:
    """Places objects in a room so that they neither overlap nor hide the subject of the scene."""

    def __init__(self, rng: np.random.Generator, room: Room, camera: Camera):
        """Starts with an empty room."""
        self.rng, self.room, self.camera = rng, room, camera
        self.primitives: list[Primitive] = []
        self.num_instances = 0
        # Rectangles (low x, low z, high x, high z) on the floor; the first keeps objects away from the camera.
        self.occupied = [np.array([-0.6, -0.6, 0.6, 0.9])]
        # The same for objects on the walls, seen from above.
        self.wall_footprints: list[np.ndarray] = []
        self.walls = self.build_walls()

    def build_walls(self) -> list[tuple[np.ndarray, float, float]]:
        """Returns the middle of the lower edge `(3,)`, yaw and length of the back, right, left and front wall."""
        low, high = self.room.low, self.room.high
        middle, size = (low + high) / 2.0, high - low
        return [
            (np.array([middle[0], 0.0, high[2]]), 0.0, size[0]),
            (np.array([high[0], 0.0, middle[2]]), np.pi / 2.0, size[2]),
            (np.array([low[0], 0.0, middle[2]]), -np.pi / 2.0, size[2]),
            (np.array([middle[0], 0.0, low[2]]), np.pi, size[0]),
        ]

    def add(self, primitives: list[Primitive], name: str) -> None:
        """Adds one instance of a class."""
        label = CLASS_NAMES["semseg"].index(name)
        self.primitives += [replace(p, label=label, instance=self.num_instances) for p in primitives]
        self.num_instances += 1

    def add_shell(self) -> None:
        """Adds floor, ceiling and walls as slabs that overlap at the edges, so that no ray passes between them."""
        rng, size = self.rng, self.room.high - self.room.low
        floor = str(rng.choice(["planks", "checker", "noise"], p=[0.5, 0.3, 0.2]))
        family = {"planks": "planks", "checker": "tiles", "noise": "carpet"}[floor]
        period = {"planks": 0.25, "checker": 0.45, "noise": 0.3}[floor]
        boards = sample_material(rng, family, floor, period=period, contrast=0.4)
        plaster = sample_material(rng, "white", "noise", period=1.5, contrast=0.08)
        middle = (self.room.low + self.room.high) / 2.0
        for bottom, material, name in ((-0.2, boards, "floor"), (size[1], plaster, "ceiling")):
            place = (middle[0], bottom, middle[2])
            self.add([make_primitive("box", place, (size[0] + 0.4, 0.2, size[2] + 0.4), material)], name)
        texture = str(rng.choice(["plain", "noise", "stripes"]))
        paint = sample_material(rng, "wall", texture, period=rng.uniform(0.4, 0.8), contrast=0.12)
        for foot, yaw, length in self.walls:
            slab = make_primitive("box", (0.0, -0.1, 0.1), (length + 0.4, size[1] + 0.2, 0.2), paint)
            self.add(move([slab], foot, yaw), "wall")

    def sample_view_point(self, near: float, far: float, spread: float) -> np.ndarray:
        """Draws a floor point `(3,)` at `near` to `far` metres, at most `spread` of the half width off the center."""
        depth = self.rng.uniform(near, far)
        forward = self.camera.rotation[:, 2] * [1.0, 0.0, 1.0]
        ahead = depth * forward / np.linalg.norm(forward)
        return ahead + self.rng.uniform(-spread, spread) * depth * self.camera.half_width * self.camera.rotation[:, 0]

    def is_free(self, rectangle: np.ndarray) -> bool:
        """Returns whether a rectangle on the floor is inside the room and overlaps nothing."""
        low, high = self.room.low[[0, 2]], self.room.high[[0, 2]]
        inside = (rectangle[:2] >= low + 0.02).all() and (rectangle[2:] <= high - 0.02).all()
        return inside and not overlaps(rectangle, self.occupied)

    def place(self, primitives: list[Primitive], name: str, position: np.ndarray, yaw: float) -> bool:
        """Adds an object at a position if the floor is free there; returns whether it did."""
        primitives = move(primitives, position, yaw)
        rectangle = footprint(primitives)
        if not self.is_free(rectangle):
            return False
        self.occupied.append(rectangle)
        self.add(primitives, name)
        return True

    def place_free(self, primitives: list[Primitive], name: str) -> None:
        """Adds an object away from the walls; gives up after eight positions."""
        for _ in range(8):
            position = self.sample_view_point(1.6, self.room.high[2] - 0.4, 0.9)
            if self.place(primitives, name, position, self.rng.uniform(-np.pi, np.pi)):
                return

    def sample_wall_spot(self, width: float) -> tuple[np.ndarray, float]:
        """Draws a position `(3,)` at the back or a side wall for an object of `width` metres, and its yaw."""
        foot, yaw, length = self.walls[self.rng.integers(3)]
        along = self.rng.uniform(-0.5, 0.5) * (length - width - 0.2)
        return foot + rotate_yaw(yaw)[:, 0] * along, yaw

    def place_against_wall(self, primitives: list[Primitive], name: str) -> None:
        """Adds an object that stands at the back or a side wall; gives up after eight positions."""
        low_x, _, high_x, high_z = footprint(primitives)
        for _ in range(8):
            foot, yaw = self.sample_wall_spot(high_x - low_x)
            # 6 cm off the wall, in front of objects on the wall
            position = foot - rotate_yaw(yaw)[:, 2] * (high_z + 0.06)
            if self.is_in_view(position) and self.place(primitives, name, position, yaw):
                return

    def place_on_wall(self, primitives: list[Primitive], name: str) -> None:
        """Adds an object on the back or a side wall; gives up after eight positions."""
        low_x, _, high_x, _ = footprint(primitives)
        for _ in range(8):
            foot, yaw = self.sample_wall_spot(high_x - low_x)
            rectangle = footprint(move(primitives, foot, yaw)) + [-0.1, -0.1, 0.1, 0.1]
            if self.is_in_view(foot) and not overlaps(rectangle, self.wall_footprints):
                self.wall_footprints.append(rectangle)
                self.add(move(primitives, foot, yaw), name)
                return

    def is_in_view(self, point: np.ndarray) -> bool:
        """Returns whether a point `(3,)` is in the horizontal field of view of the camera."""
        right, _, depth = self.camera.rotation.T @ (point - self.camera.origin)
        return depth > 1.2 and abs(right) < 0.95 * self.camera.half_width * depth

    def place_subject(self, name: str) -> None:
        """Adds a person or another object in view of the camera, and keeps the line of sight to it free."""
        position = self.sample_view_point(1.8, min(2.9, self.room.high[2] - 0.7), 0.55)
        position = np.clip(position, self.room.low + 0.5, self.room.high - 0.5) * [1.0, 0.0, 1.0]
        to_camera = np.arctan2(position[0], position[2])
        if name == "person":
            primitives = self.add_person(to_camera, position)
        else:
            primitives = move(FURNITURE[name](self.rng), position, to_camera + self.rng.uniform(-0.8, 0.8))
            self.add(primitives, name)
        self.occupied.append(footprint(primitives))
        for fraction in (0.35, 0.55, 0.75):
            middle = position[[0, 2]] * fraction
            self.occupied.append(np.concatenate([middle - 0.3, middle + 0.3]))

    def add_person(self, to_camera: float, position: np.ndarray) -> list[Primitive]:
        """Adds a person, with a chair if the person sits; returns the primitives that were added."""
        action = str(self.rng.choice(["stand", "walk", "sit"], p=[0.4, 0.3, 0.3]))
        person, seat = build_person(self.rng, action)
        yaw = to_camera + self.rng.uniform(-1.0, 1.0) * (1.2 if action == "sit" else 2.4)
        primitives = move(person, position, yaw)
        self.add(primitives, "person")
        if action != "sit":
            return primitives
        # Slightly forward, so that the backrest touches the back of the person.
        chair = move(build_chair(self.rng, seat), position - 0.06 * rotate_yaw(yaw)[:, 2], yaw)
        self.add(chair, "chair")
        return primitives + chair


def footprint(primitives: list[Primitive]) -> np.ndarray:
    """Returns the rectangle `(4,)` (low x, low z, high x, high z) that primitives cover on the floor."""
    corners = np.concatenate([primitive.corners() for primitive in primitives], axis=1)[[0, 2]]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)])


def overlaps(rectangle: np.ndarray, others: list[np.ndarray]) -> bool:
    """Returns whether a rectangle `(4,)`, as `footprint` returns it, overlaps one of the others."""
    return any((rectangle[2:] > other[:2]).all() and (rectangle[:2] < other[2:]).all() for other in others)


def furnish(builder: RoomBuilder, rng: np.random.Generator) -> None:
    """Furnishes a room from the walls to the middle, large objects first."""
    builder.place_on_wall(build_door(rng), "door")
    # Only the door is on a wall yet: furniture must not block it, but may stand below windows and paintings.
    builder.occupied += builder.wall_footprints
    for name in rng.permutation(["bed", "cabinet"]):
        if rng.random() < 0.75:
            builder.place_against_wall(FURNITURE[name](rng), name)
    for name in ["table", *rng.permutation(["chair", "chair", "lamp", "plant", "ball", "ball"])]:
        if rng.random() < 0.6:
            builder.place_free(FURNITURE[name](rng), name)
    for build, name in ((build_window, "window"), (build_picture, "picture")):
        for _ in range(rng.integers(1, 3)):
            builder.place_on_wall(build(rng), name)


def build_scene(seed: int) -> Scene:
    """Builds a random room. It does not depend on the image size, so every size shows the same scene."""
    rng = np.random.default_rng(seed)
    room, camera = sample_room(rng), sample_camera(rng)
    builder = RoomBuilder(rng, room, camera)
    builder.add_shell()
    subjects = ["person", "chair", "table", "plant", "ball", "lamp"]
    builder.place_subject(str(rng.choice(subjects, p=[0.6, 0.08, 0.09, 0.08, 0.09, 0.06])))
    furnish(builder, rng)
    if rng.random() < 0.6:
        position = builder.sample_view_point(1.7, room.high[2] - 0.8, 0.5)
        builder.add(move(build_rug(rng), position, rng.uniform(-0.5, 0.5)), "rug")
    light = np.array([rng.uniform(-0.8, 0.8), room.low[1] + 0.3, rng.uniform(0.3, 0.7) * room.high[2]])
    return Scene(camera, builder.primitives, light)
