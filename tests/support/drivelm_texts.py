"""DriveLM's own texts and tags that several tests ask about."""

from adapt.coords import NUSCENES

CAMERAS = [camera for row in NUSCENES.cameras for camera in row]
IMPORTANT = (
    "What are the important objects in the current scene? Those objects will be considered for "
    "the future reasoning and driving decision."
)
TRAFFIC = "Identify all the traffic elements in the front view."
C1 = "<c1,CAM_BACK,1088.3,497.5>"
C2 = "<c2,CAM_FRONT,1043.2,-0.5>"
