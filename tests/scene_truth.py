"""The true answer to a question about a scene, derived anew: the generator of questions is not asked."""

from fsr.minivlm.scenes import BACKGROUNDS, CLASSES, COLORS, LETTERS, QUADRANTS


def truth(scene, q):
    """The answer, derived anew from the words of the question and the object list."""
    height, width = scene.image.shape[:2]
    words = q.text.rstrip(" ?").split()
    named = [CLASSES.index(w) for w in words if w in CLASSES]
    those = [o for o in scene.objects if named and o.kind == named[0]]
    if q.kind == "existence":
        return "yes" if those else "no"
    if q.kind == "count":
        return ["one", "two", "three", "four"][min(len(those), 4) - 1]
    if q.kind == "background":
        return BACKGROUNDS[scene.background]
    if q.kind == "reading":
        return " ".join(LETTERS[i].lower() for i in scene.sign)
    (o,) = those
    if q.kind == "color":
        return list(COLORS)[o.color]
    x, y = (o.box[0] + o.box[2]) / 2, (o.box[1] + o.box[3]) / 2
    if q.kind == "position":
        return QUADRANTS[2 * (y > height / 2) + (x > width / 2)]
    if q.kind == "neighbor":
        ((r, c),) = o.cells
        step = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
        dr, dc = next(v for k, v in step.items() if k in words)
        (other,) = [p for p in scene.objects if (r + dr, c + dc) in p.cells]
        return CLASSES[other.kind]
    (other,) = [p for p in scene.objects if p.kind == named[1]]
    dx = x - (other.box[0] + other.box[2]) / 2
    dy = y - (other.box[1] + other.box[3]) / 2
    says = {"left": dx < 0, "right": dx > 0, "above": dy < 0, "below": dy > 0}
    return "yes" if next(v for k, v in says.items() if k in words) else "no"
