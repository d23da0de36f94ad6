"""Find the scenes of a clip while its frames pass by: hard cuts by PySceneDetect, and frames of one colour.

Dissolves are not found. Who decodes the clip feeds the frames.
"""

import numpy as np
from PIL import Image


# Chosen on 1,425 real clips (fast driving, robot arms, others): ten are cut, two of them wrongly. Two clips joined
# at random are cut apart in half to three quarters of the cases if both show one track, always if the camera is fixed.
RATIO = 2.5  # of a frame's change to the mean change of the four around it
LEAST_CHANGE = 18.0
HELD = 0.5  # mean difference in grey levels below which a frame is the one before, shown again
BLANK = 2.0  # standard deviation in grey levels of a frame of one colour
WIDTH = 64  # of small frames, in pixels
_RATE = 30.0  # PySceneDetect counts time in frames of some rate; only the count is used


class SceneFinder:
    """Take the frames of a clip one by one, and return its scenes at the end. Memory does not grow with the clip.

    Raises:
        ValueError: if PySceneDetect is not installed.
    """

    def __init__(self):
        try:
            from scenedetect import FrameTimecode
            from scenedetect.detectors import AdaptiveDetector
        except ImportError as error:
            raise ValueError(
                'finding cuts needs PySceneDetect; install it with `pip install ".[cuts]"` in the checkout, or name '
                "the frames that begin a scene"
            ) from error
        self._number = FrameTimecode
        self._detector = AdaptiveDetector(RATIO, min_scene_len=0, min_content_val=LEAST_CHANGE)
        self._fed: list[int] = []  # the frame of each picture that the detector holds, in the order it got them
        self._first = 0  # number of the first of them
        self._recent: list[tuple[int, np.ndarray]] = []  # the last three new frames
        self._started = False
        self._num_frames = 0
        self._borders: list[int] = []
        self._blank: list[list[int]] = []  # first frame and frame after the last of each stretch of one colour
        self._size: tuple[int, int] | None = None  # of small frames, by the aspect of the first

    def add(self, frame: np.ndarray, grey: np.ndarray) -> None:
        """Take the next frame, small: `uint8` `(height, width, 3)`, and `(height, width)` in grey levels."""
        index = self._num_frames
        self._num_frames += 1
        if grey.std() < BLANK:
            if self._blank and self._blank[-1][1] == index:
                self._blank[-1][1] = index + 1
            else:
                self._blank.append([index, index + 1])
        # Footage that repeats frames would else seem to jump at each new one.
        if self._recent and np.abs(frame.astype(np.int16) - self._recent[-1][1]).mean() < HELD:
            return
        self._recent = [*self._recent[-2:], (index, frame)]
        if self._started:
            self._feed(index, frame)
        elif len(self._recent) == 3:
            # The detector judges a frame by two before and two after it: the clip begins and ends mirrored.
            self._started = True
            for mirrored in (self._recent[2], self._recent[1]):
                self._feed(-1, mirrored[1])
            for recent in self._recent:
                self._feed(*recent)

    def add_frame(self, frame: np.ndarray) -> None:
        """Take the next frame of any size, `uint8` `(height, width, 3)`."""
        height, width = frame.shape[:2]
        self._size = self._size or (WIDTH, min(4 * WIDTH, max(8, round(WIDTH * height / width))))
        small = Image.fromarray(frame).resize(self._size, Image.Resampling.BOX)
        self.add(np.asarray(small), np.asarray(small.convert("L")))

    def borders(self) -> list[int]:
        """Return the first frame of each scene and of each stretch of one colour, at the end."""
        if self._started:
            for _, frame in self._recent[1::-1]:
                self._feed(-1, frame)
        found = {0, *self._borders, *(index for stretch in self._blank for index in stretch)}
        return sorted(number for number in found if number < self._num_frames)

    def finish(self) -> list[tuple[int, int]]:
        """Return the first frame and the number of frames of each scene; frames of one colour belong to none."""
        borders = self.borders()
        ends = [*borders[1:], self._num_frames]
        scenes = [(first, end - first) for first, end in zip(borders, ends) if end > first]
        return [scene for scene in scenes if not any(begin <= scene[0] < end for begin, end in self._blank)]

    def _feed(self, index: int, frame: np.ndarray) -> None:
        number = self._first + len(self._fed)
        self._fed.append(index)
        bgr = np.ascontiguousarray(frame[..., ::-1])
        for cut in self._detector.process_frame(self._number(number, _RATE), bgr):
            found = self._fed[cut.frame_num - self._first]
            if found > 0:
                self._borders.append(found)
        if len(self._fed) > 16:
            self._fed, self._first = self._fed[-8:], self._first + len(self._fed) - 8
