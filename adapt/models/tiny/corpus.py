"""Sentences the tiny tokenizer learns its words from: driving, other pictures, small talk.

Written for this purpose; only their words matter, not their truth.
"""

from __future__ import annotations

from collections.abc import Iterator

from adapt.converters.drivelm import PROMPT
from adapt.models.chat import load_template

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_LEFT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
COLOURS = (
    *("red", "green", "blue", "yellow", "white", "black", "orange", "purple", "brown", "grey"),
    *("gray", "silver", "pink", "cyan", "magenta", "dark", "bright"),
)
OBJECTS = (
    *("car", "truck", "bus", "van", "pedestrian", "cyclist", "bicycle", "motorcycle", "trailer"),
    *("traffic light", "traffic sign", "traffic cone", "barrier", "road", "lane", "building"),
    *("tree", "person", "vehicle", "animal", "construction vehicle", "sedan", "dog", "cat", "bird"),
    *("ball", "box", "house", "chair", "table", "cup", "book", "plane", "boat", "field", "sky"),
)
SHAPES = ("circle", "square", "triangle", "rectangle", "star", "cross", "diamond", "shape", "ring")
MOTIONS = (
    *("Going ahead.", "Turn right.", "Turn left.", "Stopped.", "Back up.", "Reverse parking."),
    *("Drive backward.", "Moving.", "Parked.", "Standing.", "Keep going at the same speed."),
)
SPEEDS = (
    *("not moving", "driving slowly", "driving with normal speed", "driving fast"),
    "driving very fast",
)
STEERINGS = (
    *("going straight", "steering to the left", "steering to the right"),
    *("slightly steering to the left", "slightly steering to the right"),
)
SIDES = ("left", "right", "front", "back", "front left", "front right", "back left", "back right")
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("none", "many", "some", "several", "few"),
)
SENTENCES = (
    "What are the important objects in the current scene? Those objects will be considered for "
    "the future reasoning and driving decision.",
    "What is the moving status of object TAG? Please select the correct answer from the following "
    "options: A. MOTION B. MOTION C. MOTION D. MOTION",
    "Predict the behavior of the ego vehicle. Please select the correct answer from the following "
    "options: A. The ego vehicle is STEERING. The ego vehicle is SPEED. B. The ego vehicle is "
    "STEERING. The ego vehicle is SPEED.",
    "What object should the ego vehicle notice first when the ego vehicle is getting to the next "
    "possible location? What is the state of the object that is first noticed by the ego vehicle "
    "and what action should the ego vehicle take?",
    "Firstly notice that TAG. The object is turning left, so the ego vehicle should slow down. "
    "Secondly notice that TAG. Thirdly notice that TAG.",
    "There is a COLOUR OBJECT to the SIDE of the ego vehicle, a COLOUR OBJECT to the SIDE of the "
    "ego vehicle. The IDs of these objects are TAG, TAG, and TAG.",
    "What is the visual description of TAG? COLOUR OBJECT.",
    "What is the observed status of object TAG? MOTION",
    "What is the colour of the SHAPE in CAMERA? The color is COLOUR.",
    "Which SHAPE is in CAMERA? The COLOUR SHAPE. Is there a COLOUR SHAPE in CAMERA? Yes. No.",
    "How many OBJECTs are there in the picture? There are NUMBER OBJECTs.",
    "Identify all the traffic elements in the front view, categorize them, determine their status, "
    "and predict the bounding box around each one. The output should be a list formatted as "
    "(c, s, x1, y1, x2, y2), where c represents the category, s denotes the status.",
    "In this scenario, what are safe actions to take for the ego vehicle? Keep going at the same "
    "speed, brake gently to a stop, accelerate and go ahead, change to the left lane.",
    "What actions taken by the ego vehicle can lead to a collision with TAG? Accelerate and go "
    "straight, steer to the right, reverse, offset a little.",
    "What actions could the ego vehicle take based on TAG? Why take this action and what is the "
    "probability? The action is to remain stationary, because there are no safety issues, with "
    "a high probability. Low probability of taking the action to avoid a collision.",
    "Would TAG be in the moving direction of the ego vehicle? Is TAG a OBJECT or a OBJECT? Will "
    "it be stationary or continue driving? What is the future state of TAG?",
    "What is the relative positioning of the important objects in the current scene? TAG is in "
    "front of TAG and behind the ego car. What does TAG mean? It is a stop sign.",
    "Except for the ego vehicle, what object would consider TAG to be most relevant to its "
    "decision? What kind of traffic sign is TAG? None. What is the goal of the ego vehicle?",
    "The views are CAM_FRONT, CAM_FRONT_LEFT, CAM_FRONT_RIGHT, CAM_BACK, CAM_BACK_LEFT, "
    "CAM_BACK_RIGHT of six cameras around the ego vehicle, stitched into one picture.",
    "A c tag <c1,CAMERA,[495, 525]> names an object: its number, the camera that sees it, and "
    "the point [x, y] of its center in the image, from 0 to 1000.",
    "Detect <ref>the COLOUR OBJECT</ref>. <ref>OBJECT</ref><box>[[100, 200, 300, 400]]</box>",
    "What object is in this location<box>[[10, 20, 300, 999]]</box>? Describe this region.",
    "Classify the image within one of the given classes: dense residential area, airport, "
    "school, forest, river, beach, park, bridge. Answer with one word or short phrase.",
    "Answer the question using a single word or phrase. Is it a rural or an urban area? Urban.",
    "Frame1: Frame2: Frame3: What is the action of the ego car? The car slows to a stop, because "
    "the light is red. The car is moving at a steady speed because traffic is clear.",
    "Describe the image in detail. The image shows a COLOUR OBJECT next to a COLOUR OBJECT.",
    "What is shown in this picture? A chest X-ray of a patient. Is there an abnormality? No.",
    "Who are you? Can you help me? Of course, please tell me what you would like to know.",
    "Text only, no picture: what is two plus two? It is four. Thank you. You are welcome.",
    "Where is the COLOUR OBJECT? On the SIDE side. What is on the SIDE? A COLOUR OBJECT.",
    "Pedestrian crossing, wait for it; do not drive. MOTION Which view has it? CAMERA.",
)
ANSWERS = (
    *("Yes", "No", "A", "B", "C", "D", "E", "F", "Yes.", "No.", "None.", "True", "False"),
    "The ego vehicle is STEERING. The ego vehicle is SPEED.",
    "The action is to keep going at the same speed, high. The action is to brake, low.",
    "There is a COLOUR OBJECT. There are NUMBER OBJECTs. There is one traffic element.",
    "The SHAPE is COLOUR. The OBJECT is COLOUR. The colour is COLOUR. It is COLOUR.",
    "Firstly notice TAG. Slow down. Keep going. Brake. Stop. Accelerate. Wait.",
    "Red traffic light. Green traffic light. Yellow light. White car. Black sedan. Silver truck.",
    "Rural. Urban. Left. Right. Front. Back. In the middle. At the top. At the bottom.",
    "The car is stopped because there is a pedestrian. The road is clear of other vehicles.",
    "A photo of a dog. A man with a hat. A woman and a child. People on the street at night.",
    "The weather is sunny. The time is day. The scene is a city. Cloudy, rainy, snowy, foggy.",
    "X-ray, CT, MRI, ultrasound, brain, chest, heart, liver, lung, bone, normal, tumor.",
    "Aerial view of a harbor with ships, a stadium, storage tanks, roads and a parking lot.",
)
"""Answers stand at the start of a turn: no space before them."""
SYSTEM_SHARE = 200
"""How often system text and roles occur: enough for their words to become few tokens."""
ROUNDS = 60
"""How often each sentence occurs, its slots filled otherwise each time."""


def sentences() -> Iterator[str]:
    """Yield the corpus, always the same."""
    yield from [load_template("internvl2_5").system, "system\n"] * SYSTEM_SHARE
    yield from ["user\n", "assistant\n", "\n", PROMPT] * SYSTEM_SHARE
    fillings = {
        "TAG": [f"<c{n % 9 + 1},{CAMERAS[n % 6]},[{n * 37}, {n * 53}]>" for n in range(12)],
        "CAMERA": CAMERAS,
        "COLOUR": COLOURS,
        "OBJECT": OBJECTS,
        "SHAPE": SHAPES,
        "MOTION": MOTIONS,
        "SPEED": SPEEDS,
        "STEERING": STEERINGS,
        "SIDE": SIDES,
        "NUMBER": NUMBERS,
    }
    turn = 0
    for _ in range(ROUNDS):
        for sentence in (*SENTENCES, *ANSWERS):
            filled = sentence
            for slot, values in fillings.items():
                while slot in filled:
                    value = values[turn % len(values)]
                    filled = filled.replace(slot, value, 1)
                    turn += 1
            yield filled
        yield from (*MOTIONS, *CAMERAS)
        for words in (COLOURS, OBJECTS, SHAPES, NUMBERS, SIDES):
            yield from words
            yield from (f" {word}, {word.capitalize()}" for word in words)
            yield from (word.capitalize() for word in words)
