"""Classes of the scenes and of the parts of a person."""

CLASS_NAMES = {
    "semseg": [
        "wall",
        "floor",
        "ceiling",
        "window",
        "door",
        "picture",
        "rug",
        "bed",
        "cabinet",
        "table",
        "chair",
        "lamp",
        "plant",
        "ball",
        "person",
    ],
    "parsing": ["background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs"],
}
# Objects that stand away from the walls.
FREE_STANDING = ["table", "chair", "lamp", "plant", "ball"]
HEAD, TORSO, UPPER_ARMS, LOWER_ARMS, UPPER_LEGS, LOWER_LEGS = range(1, 7)
