"""Segment a scan with a model of `contextseg export RUN model.onnx`, without contextseg.

    python run_onnx.py model.onnx out.nii.gz scan.nii.gz [second_channel.nii.gz ...]

Needs onnxruntime, numpy, nibabel and scipy; model.onnx.json beside the model says what to do.
"""

import json
import sys
from itertools import combinations, product

import nibabel as nib
import numpy as np
from nibabel import orientations as axes
from scipy import ndimage


def body_of(x, spec):
    """The body (D, H, W) bool in an image (C, D, H, W): step 2 of the description."""
    size = [max(1, n // 128) for n in x.shape[1:]]
    axial = next(i for i, letter in enumerate(spec["orientation"]) if letter in "SI")
    corners = x[:, [0, 0, 0, 0, -1, -1, -1, -1], [0, 0, -1, -1] * 2, [0, -1] * 4]
    constant = np.sort(corners, axis=1)[:, 4].reshape(-1, 1, 1, 1)
    means = blocks(x[0], size)
    if spec["ct"]:
        mask = means > -500
    elif (x[0] == constant[0]).mean() > 0.25:
        mask = blocks((x != constant).any(0).astype(np.float32), size) > 0
    else:
        dark = min(0.0, means.min())
        mask = means > dark + 0.1 * (np.percentile(means, 98) - dark)
    cross = ndimage.generate_binary_structure(3, 1)
    cross &= (np.arange(3) == 1).reshape([-1 if i == axial else 1 for i in range(3)])
    core = ndimage.binary_erosion(mask, cross, border_value=1) if spec["ct"] else mask
    core = core if core.any() else mask
    if x[0].min() == x[0].max() or not core.any():
        return np.ones(x.shape[1:], bool)
    parts = ndimage.label(mask)[0]
    sizes = np.bincount(parts.ravel(), core.ravel())
    grown = ndimage.binary_dilation(core, iterations=4, mask=mask) if spec["ct"] else mask
    body = grown & ((sizes >= 0.02 * sizes.max()) & (sizes > 0))[parts]
    body = np.stack([ndimage.binary_fill_holes(p) for p in np.moveaxis(body, axial, 0)], axial)
    for axis, n in enumerate(size):
        body = body.repeat(n, axis)
    return body[tuple(slice(n) for n in x.shape[1:])]


def blocks(x, size):
    """Means of blocks of `size` voxels."""
    for axis, n in enumerate(size):
        starts = np.arange(0, x.shape[axis], n)
        counts = np.diff([*starts, x.shape[axis]]).astype(np.float32)
        shape = [-1 if i == axis else 1 for i in range(3)]
        x = np.add.reduceat(x, starts, axis) / counts.reshape(shape)
    return x


def zoomed(x, shape, orders):
    """(D, H, W) resampled over the same extent."""
    for axis, order in enumerate(orders):
        factor = [shape[axis] / x.shape[axis] if i == axis else 1 for i in range(3)]
        if x.shape[axis] != shape[axis]:
            x = ndimage.zoom(x, factor, order=order, mode="nearest", grid_mode=True)
    return x


def normalised(x, body, spacing, spec):
    """Steps 4 to 6: the network's image (C, d, h, w)."""
    target = spacing if spec.get("native") else spec["spacing_mm"]
    shape = [max(1, round(n * s / t)) for n, s, t in zip(body.shape, spacing, target)]
    small = [zoomed(c, shape, spec["spline_orders"]).clip(c.min(), c.max()) for c in x]
    out = []
    for c in spec["channels"]:
        k, low, high = c["source"], c["low"], c["high"]
        case = [float(np.float32(f(x[k]))) for f in (np.min, np.max)]
        low, high = case if c["kind"] == "rescale" and high <= low else (low, high)
        inside = x[k][body].astype(np.float64)
        centre, scale = {
            "ct": (c["mean"], c["sd"]),
            "zscore": (inside.mean(), inside.std()),
            "none": (0, 1),
        }.get(c["kind"], (low, high - low))
        scale = scale if scale > 1e-6 * (case[1] - case[0]) else (case[1] - case[0]) or 1
        image = small[k].clip(low, high) if c["kind"] in ("ct", "window") else small[k]
        places = ((np.arange(shape[0]) + 0.5) / shape[0]).reshape(-1, 1, 1)
        image = np.broadcast_to(places, shape) if c["kind"] == "place" else (image - centre) / scale
        out.append(image.astype(np.float32))
    return np.stack(out)


def logits_of(network, image, spec):
    """Step 7: logits (K, d, h, w) by sliding windows and mirrors."""
    flat = len(spec["patch_vox"]) == 2
    patch = [1] * flat + spec["patch_vox"]
    pads = [max(p - n, 0) for p, n in zip(patch, image.shape[1:])]
    image = np.pad(image, [(0, 0), *((p // 2, p - p // 2) for p in pads)])
    gaps = [-(-(n - p) // (p * spec["step"])) for n, p in zip(image.shape[1:], patch)]
    starts = [
        [round((n - p) * i / g) if g else 0 for i in range(int(g) + 1)]
        for n, p, g in zip(image.shape[1:], patch, gaps)
    ]
    starts[0] = range(image.shape[1]) if flat else starts[0]
    bells = [np.exp(-(((np.arange(p) - p // 2) / (p / 8)) ** 2) / 2) for p in patch]
    bell = (bells[0][:, None, None] * bells[1][:, None] * bells[2]).astype(np.float32)
    mirrors = [m for n in range(4) for m in combinations(spec["mirror_axes"], n)]
    order = np.arange(len(spec["values"]))
    for a, b in spec["swaps"]:
        order[[a, b]] = order[[b, a]]
    total, weight = 0, np.zeros(image.shape[1:], np.float32)
    for corner in product(*starts):
        box = tuple(slice(s, s + p) for s, p in zip(corner, patch))
        z = 0
        for mirror in mirrors:
            dims = [axis + 1 for axis in mirror]
            x = np.flip(image[(slice(None), *box)], dims)[None]
            y = network(np.ascontiguousarray(x[:, :, 0] if flat else x))[0]
            y = np.flip(y[:, None] if flat else y, dims)
            z = z + (y[order] if spec["lateral_axis"] in mirror else y)
        if weight.max() == 0:
            total = np.zeros((len(z), *weight.shape), np.float32)
        total[(slice(None), *box)] += z / len(mirrors) * bell
        weight[box] += bell
    inside = (slice(p // 2, n - p + p // 2) for p, n in zip(pads, weight.shape))
    return (total / weight)[(slice(None), *inside)]


def keep_largest(label, mask):
    """Write 0 wherever `mask` is not in its largest connected part, the last two steps."""
    parts = ndimage.label(mask.T, np.ones((3, 3, 3)))[0].T  # of several the first, by k, j, i
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    label[mask & (parts != sizes.argmax())] = 0


def segment(network, spec, scans):
    """All steps: a nibabel image of the classes' values on the scan's grid."""
    there = axes.io_orientation(scans[0].affine)
    wanted = axes.axcodes2ornt(tuple(spec["orientation"]))
    turn = axes.ornt_transform(there, wanted)
    x = np.stack([axes.apply_orientation(s.get_fdata(dtype=np.float32), turn) for s in scans])
    sizes = nib.affines.voxel_sizes(scans[0].affine)
    spacing = [sizes[int(np.flatnonzero(there[:, 0] == axis)[0])] for axis in wanted[:, 0]]
    body = body_of(x, spec)
    whole = np.ones(body.shape, int) if spec.get("native") else body.astype(int)
    box = ndimage.find_objects(whole)[0]
    image = normalised(x[(slice(None), *box)], body[box], spacing, spec)
    logits = logits_of(network, image, spec)
    label = np.full(body.shape, spec["values"][0], np.int32)
    fine = np.stack([zoomed(z, body[box].shape, (1, 1, 1)) for z in logits])
    label[box] = np.array(spec["values"])[fine.argmax(0)]
    back = axes.apply_orientation(label, axes.ornt_transform(wanted, there))
    for value in spec.get("largest_of", []):
        keep_largest(back, back == value)
    if spec.get("largest_component"):
        keep_largest(back, back > 0)
    return nib.Nifti1Image(back, scans[0].affine)


if __name__ == "__main__":
    import onnxruntime

    model, out, *files = sys.argv[1:]
    with open(f"{model}.json", encoding="utf-8") as file:
        description = json.load(file)
    session = onnxruntime.InferenceSession(model)
    scans = [nib.load(path) for path in files]
    nib.save(segment(lambda x: session.run(None, {"image": x})[0], description, scans), out)
