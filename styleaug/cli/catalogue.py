"""One line about each generator that is known by name, for `styleaug list`."""

__all__ = ["GENERATORS"]

GENERATORS = {
    "adain": "texture, strokes and colour, by a network",
    "cell-stain": "blood cells of one laboratory in the stain of another; needs no bank",
    "cell-stains": "blood cells in the stain of one of three laboratories, drawn at random; needs no bank",
    "fourier": "amplitudes of low frequencies: large areas of light and colour",
    "fourier-full": "amplitudes of all frequencies, edges kept: colour, contrast and grain",
    "gin": "four small random layers, contrast kept: for CT and MR; needs no bank",
    "hed-jitter": "random changes of haematoxylin, eosin and DAB; needs no bank",
    "hed-jitter-strong": "as hed-jitter, with larger changes; needs no bank",
    "histogram": "the distribution of each colour channel",
    "histogram-luminance": "the distribution of brightness only",
    "macenko": "colours and amounts of the two dyes of a stain (H&E)",
    "mask-to-cell": "paints blood cells into masks; needs no bank",
    "patchswap": "each patch replaced by a patch of the style: the strongest change",
    "photo": "light, tone and colour that vary over the image; no edge moves",
    "photo-to-sketch": "photographs as line drawings; needs no bank",
    "pro-randconv": "a small random convolution, repeated up to 3 times; needs no bank",
    "randconv": "one random convolution: colours and fine texture; needs no bank",
    "random-filter": "sharper, softer or embossed by a random filter; needs no bank",
    "randstainna": "means and deviations in Lab, HSV or HED, drawn at random: for stains",
    "reinhard-hed": "means and deviations of haematoxylin, eosin and DAB",
    "reinhard-hsv": "means and deviations of hue, saturation and value",
    "reinhard-lab": "means and deviations of lightness and two colours",
    "reinhard-luminance": "mean and deviation of brightness only",
    "reinhard-rgb": "means and deviations of red, green and blue",
    "reinhard-ycbcr": "means and deviations of brightness and two colours",
    "tone-curves": "a smooth random curve for each colour; needs no bank",
    "vahadane": "as macenko, but finds the dyes by sparse factorisation",
}
