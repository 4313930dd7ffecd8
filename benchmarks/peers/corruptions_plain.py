"""The 15 common corruptions as a careful user would port them from the published code, step by step.

The code is that of ImageNet-C (Hendrycks and Dietterich 2019, hendrycks/robustness). NumPy, SciPy, OpenCV and
Pillow do what they do there. scikit-image and ImageMagick, which it also needs, are written out in NumPy from
their sources. Random numbers come from a Generator instead of NumPy's global state, and frost from sheets that
the caller gives instead of photos. Nothing is faster than the published code makes it.

Imports nothing of tellapart: it is what tellapart is measured against.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage


def corrupt(x, name, severity, rng, sheets: Sequence = ()):
    """Return `x`, (224, 224, 3) uint8 RGB, with corruption `name`; `sheets` are pictures of frost."""
    extra = (sheets,) if name == "frost" else ()
    return np.uint8(CORRUPTIONS[name](x, severity, rng, *extra))


# Each returns levels as float, 0 to 255, before np.uint8 cuts them down (Pillow's: uint8) -----------------


def gaussian_noise(x, severity, rng):
    """Add normal noise."""
    c = [0.08, 0.12, 0.18, 0.26, 0.38][severity - 1]
    x = np.array(x) / 255.0
    return np.clip(x + rng.normal(size=x.shape, scale=c), 0, 1) * 255


def shot_noise(x, severity, rng):
    """Replace values by Poisson counts."""
    c = [60, 25, 12, 5, 3][severity - 1]
    x = np.array(x) / 255.0
    return np.clip(rng.poisson(x * c) / c, 0, 1) * 255


def impulse_noise(x, severity, rng):
    """Flip values to black or white: skimage.util.random_noise(mode="s&p")."""
    c = [0.03, 0.06, 0.09, 0.17, 0.27][severity - 1]
    x = np.array(x) / 255.0
    flipped = rng.random(x.shape) <= c
    salted = rng.random(x.shape) <= 0.5
    x[flipped & salted] = 1
    x[flipped & ~salted] = 0
    return np.clip(x, 0, 1) * 255


def disk(radius, alias_blur=0.1, dtype=np.float32):
    """Return the kernel of a lens out of focus."""
    if radius <= 8:
        L = np.arange(-8, 8 + 1)
        ksize = (3, 3)
    else:
        L = np.arange(-radius, radius + 1)
        ksize = (5, 5)
    x, y = np.meshgrid(L, L)
    aliased_disk = np.array(x**2 + y**2 <= radius**2, dtype=dtype)
    aliased_disk /= np.sum(aliased_disk)
    return cv2.GaussianBlur(aliased_disk, ksize=ksize, sigmaX=alias_blur)


def defocus_blur(x, severity, rng):
    """Convolve with a disk."""
    c = [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)][severity - 1]
    x = np.array(x) / 255.0
    kernel = disk(radius=c[0], alias_blur=c[1])
    channels = [cv2.filter2D(x[:, :, d], -1, kernel) for d in range(3)]
    return np.clip(np.array(channels).transpose((1, 2, 0)), 0, 1) * 255


def gaussian(x, sigma, mode="nearest", truncate=4.0):
    """Blur as skimage.filters.gaussian does, channels apart."""
    return ndimage.gaussian_filter(x, (sigma, sigma, 0)[: x.ndim], mode=mode, truncate=truncate)


def shuffle_locally(x, max_delta, rng):
    """Exchange each pixel of `x`, (height, width, channels), with a neighbour, in place."""
    for h in range(x.shape[0] - max_delta, max_delta, -1):
        for w in range(x.shape[1] - max_delta, max_delta, -1):
            dx, dy = rng.integers(-max_delta, max_delta, size=(2,))
            h_prime, w_prime = h + dy, w + dx
            # As published. Both sides are views, so x[h, w] gets a copy and the neighbour stays as it is.
            x[h, w], x[h_prime, w_prime] = x[h_prime, w_prime], x[h, w]


def glass_blur(x, severity, rng):
    """Blur, shuffle pixels locally, blur again."""
    sigma, max_delta, iterations = [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)][severity - 1]
    x = np.uint8(gaussian(np.array(x) / 255.0, sigma) * 255)
    for _ in range(iterations):
        shuffle_locally(x, max_delta, rng)
    return np.clip(gaussian(x / 255.0, sigma), 0, 1) * 255


def imagemagick_motion_blur(x, radius, sigma, angle):
    """Blur as MagickCore/effect.c does: one tap after the other, edge pixels continued."""
    width = 2 * int(np.ceil(radius)) + 1
    kernel = np.exp(-(np.arange(width) ** 2) / (2.0 * sigma * sigma)) / (np.sqrt(2 * np.pi) * sigma)
    kernel /= kernel.sum()
    padding = [(width, width), (width, width)] + [(0, 0)] * (x.ndim - 2)
    padded = np.pad(np.asarray(x, float), padding, mode="edge")
    result = np.zeros(x.shape)
    for i in range(width):
        dx = int(np.ceil(i * np.cos(np.deg2rad(angle)) - 0.5))
        dy = int(np.ceil(i * np.sin(np.deg2rad(angle)) - 0.5))
        result += kernel[i] * padded[width + dy :, width + dx :][: x.shape[0], : x.shape[1]]
    return np.uint8(np.clip(result + 0.5, 0, 255))


def motion_blur(x, severity, rng):
    """Blur along a line."""
    c = [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)][severity - 1]
    x = imagemagick_motion_blur(x, radius=c[0], sigma=c[1], angle=rng.uniform(-45, 45))
    return np.clip(x, 0, 255)


def clipped_zoom(img, zoom_factor):
    """Enlarge the middle of a square picture."""
    h = img.shape[0]
    ch = int(np.ceil(h / zoom_factor))
    top = (h - ch) // 2
    img = ndimage.zoom(img[top : top + ch, top : top + ch], (zoom_factor, zoom_factor, 1), order=1)
    trim_top = (img.shape[0] - h) // 2
    return img[trim_top : trim_top + h, trim_top : trim_top + h]


def zoom_blur(x, severity, rng):
    """Average enlargements."""
    c = [
        np.arange(1, 1.11, 0.01),
        np.arange(1, 1.16, 0.01),
        np.arange(1, 1.21, 0.02),
        np.arange(1, 1.26, 0.02),
        np.arange(1, 1.31, 0.03),
    ][severity - 1]
    x = (np.array(x) / 255.0).astype(np.float32)
    out = np.zeros_like(x)
    for zoom_factor in c:
        out += clipped_zoom(x, zoom_factor)
    x = (x + out) / (len(c) + 1)
    return np.clip(x, 0, 1) * 255


def snow(x, severity, rng):
    """Add motion-blurred spots of noise."""
    c = [
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ][severity - 1]
    x = np.array(x, dtype=np.float32) / 255.0
    snow_layer = rng.normal(size=x.shape[:2], loc=c[0], scale=c[1])
    snow_layer = clipped_zoom(snow_layer[..., np.newaxis], c[2])
    snow_layer[snow_layer < c[3]] = 0
    snow_layer = (np.clip(snow_layer.squeeze(), 0, 1) * 255).astype(np.uint8)
    snow_layer = imagemagick_motion_blur(snow_layer, radius=c[4], sigma=c[5], angle=rng.uniform(-135, -45)) / 255.0
    snow_layer = snow_layer[..., np.newaxis]
    grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).reshape(*x.shape[:2], 1)
    x = c[6] * x + (1 - c[6]) * np.maximum(x, grey * 1.5 + 0.5)
    return np.clip(x + snow_layer + np.rot90(snow_layer, k=2), 0, 1) * 255


def frost(x, severity, rng, sheets):
    """Add a random part of one of five pictures of frost."""
    c = [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)][severity - 1]
    sheet = sheets[rng.integers(5)]
    height, width = x.shape[:2]
    y_start = rng.integers(0, sheet.shape[0] - height + 1)
    x_start = rng.integers(0, sheet.shape[1] - width + 1)
    sheet = sheet[y_start : y_start + height, x_start : x_start + width]
    return np.clip(c[0] * np.array(x) + c[1] * sheet, 0, 255)


def plasma_fractal(rng, mapsize=256, wibbledecay=3):
    """Return a square of clouds, 0 to 1, by the diamond-square algorithm."""
    maparray = np.empty((mapsize, mapsize), dtype=np.float64)
    maparray[0, 0] = 0
    stepsize = mapsize
    wibble = 100

    def wibbledmean(array):
        return array / 4 + wibble * rng.uniform(-wibble, wibble, array.shape)

    def fillsquares():
        cornerref = maparray[0:mapsize:stepsize, 0:mapsize:stepsize]
        squareaccum = cornerref + np.roll(cornerref, shift=-1, axis=0)
        squareaccum += np.roll(squareaccum, shift=-1, axis=1)
        half = stepsize // 2
        maparray[half:mapsize:stepsize, half:mapsize:stepsize] = wibbledmean(squareaccum)

    def filldiamonds():
        half = stepsize // 2
        drgrid = maparray[half:mapsize:stepsize, half:mapsize:stepsize]
        ulgrid = maparray[0:mapsize:stepsize, 0:mapsize:stepsize]
        ldrsum = drgrid + np.roll(drgrid, 1, axis=0)
        lulsum = ulgrid + np.roll(ulgrid, -1, axis=1)
        maparray[0:mapsize:stepsize, half:mapsize:stepsize] = wibbledmean(ldrsum + lulsum)
        tdrsum = drgrid + np.roll(drgrid, 1, axis=1)
        tulsum = ulgrid + np.roll(ulgrid, -1, axis=0)
        maparray[half:mapsize:stepsize, 0:mapsize:stepsize] = wibbledmean(tdrsum + tulsum)

    while stepsize >= 2:
        fillsquares()
        filldiamonds()
        stepsize //= 2
        wibble /= wibbledecay

    maparray -= maparray.min()
    return maparray / maparray.max()


def fog(x, severity, rng):
    """Add clouds."""
    c = [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)][severity - 1]
    x = np.array(x) / 255.0
    max_val = x.max()
    x += c[0] * plasma_fractal(rng, wibbledecay=c[1])[: x.shape[0], : x.shape[1]][..., np.newaxis]
    return np.clip(x * max_val / (max_val + c[0]), 0, 1) * 255


def rgb2hsv(rgb):
    """Convert as skimage.color.rgb2hsv does, all values 0 to 1."""
    out = np.zeros_like(rgb)
    value = rgb.max(-1)
    delta = np.ptp(rgb, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        saturation = delta / value
        saturation[delta == 0.0] = 0.0
        for channel, (plus, minus, base) in enumerate([(1, 2, 0.0), (2, 0, 2.0), (0, 1, 4.0)]):
            largest = rgb[..., channel] == value
            out[largest, 0] = base + (rgb[largest, plus] - rgb[largest, minus]) / delta[largest]
        hue = (out[..., 0] / 6.0) % 1.0
        hue[delta == 0.0] = 0.0
    out[..., 0], out[..., 1], out[..., 2] = hue, saturation, value
    return np.nan_to_num(out)


def hsv2rgb(hsv):
    """Convert as skimage.color.hsv2rgb does, all values 0 to 1."""
    hue, saturation, v = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    sextant = np.floor(hue * 6.0)
    f = hue * 6.0 - sextant
    p = v * (1.0 - saturation)
    q = v * (1.0 - f * saturation)
    t = v * (1.0 - (1.0 - f) * saturation)
    which = np.stack([sextant, sextant, sextant], axis=-1).astype(np.uint8) % 6
    choices = [(v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q)]
    return np.choose(which, [np.stack(choice, axis=-1) for choice in choices])


def brightness(x, severity, rng):
    """Add to the value of HSV."""
    c = [0.1, 0.2, 0.3, 0.4, 0.5][severity - 1]
    x = rgb2hsv(np.array(x) / 255.0)
    x[:, :, 2] = np.clip(x[:, :, 2] + c, 0, 1)
    return np.clip(hsv2rgb(x), 0, 1) * 255


def contrast(x, severity, rng):
    """Pull levels towards the channels' means."""
    c = [0.4, 0.3, 0.2, 0.1, 0.05][severity - 1]
    x = np.array(x) / 255.0
    means = np.mean(x, axis=(0, 1), keepdims=True)
    return np.clip((x - means) * c + means, 0, 1) * 255


def elastic_transform(image, severity, rng):
    """Bend by an affine map and smooth noise."""
    c = [
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ][severity - 1]
    image = np.array(image, dtype=np.float32) / 255.0
    shape = image.shape
    shape_size = shape[:2]
    center_square = np.array(shape_size, np.float32) // 2
    square_size = min(shape_size) // 3
    pts1 = np.array(
        [
            center_square + square_size,
            [center_square[0] + square_size, center_square[1] - square_size],
            center_square - square_size,
        ],
        np.float32,
    )
    pts2 = pts1 + rng.uniform(-c[2], c[2], size=pts1.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(pts1, pts2)
    image = cv2.warpAffine(image, matrix, shape_size[::-1], borderMode=cv2.BORDER_REFLECT_101)
    dx = (gaussian(rng.uniform(-1, 1, size=shape[:2]), c[1], mode="reflect", truncate=3) * c[0]).astype(np.float32)
    dy = (gaussian(rng.uniform(-1, 1, size=shape[:2]), c[1], mode="reflect", truncate=3) * c[0]).astype(np.float32)
    dx, dy = dx[..., np.newaxis], dy[..., np.newaxis]
    x, y, z = np.meshgrid(np.arange(shape[1]), np.arange(shape[0]), np.arange(shape[2]))
    indices = np.reshape(y + dy, (-1, 1)), np.reshape(x + dx, (-1, 1)), np.reshape(z, (-1, 1))
    bent = ndimage.map_coordinates(image, indices, order=1, mode="reflect").reshape(shape)
    return np.clip(bent, 0, 1) * 255


def pixelate(x, severity, rng):
    """Shrink and enlarge with boxes."""
    c = [0.6, 0.5, 0.4, 0.3, 0.25][severity - 1]
    height, width = x.shape[:2]
    x = Image.fromarray(x)
    x = x.resize((int(width * c), int(height * c)), Image.Resampling.BOX)
    return np.array(x.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(x, severity, rng):
    """Encode and decode."""
    c = [25, 18, 15, 10, 7][severity - 1]
    output = BytesIO()
    Image.fromarray(x).save(output, "JPEG", quality=c)
    return np.array(Image.open(output))


CORRUPTIONS = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
