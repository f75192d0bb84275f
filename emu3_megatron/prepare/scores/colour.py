"""Colourfulness of a picture."""

import numpy as np
from PIL import Image


def colourfulness(image: Image.Image) -> float:
    """Hasler and Süsstrunk's measure: 0 is grey, about 15 slightly and 45 quite colourful.

    https://doi.org/10.1117/12.477378, on RGB of 0 to 255. Pictures are compared reduced to a few
    hundred pixels a side.
    """
    red, green, blue = np.asarray(image, np.float32).reshape(-1, 3).T
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    mean = np.hypot(red_green.mean(), yellow_blue.mean())
    return round(float(spread + 0.3 * mean), 4)
