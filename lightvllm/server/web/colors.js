// A colour for each request, the same wherever it is shown.

const colors = new Map();
const MAX_REMEMBERED = 2000;
let count = 0;

// An answer's id, as the API knows it: the engine's has something random after it.
function answerId(requestId) {
  return requestId.replace(/^(c(?:hatc)?mpl-.+)-[0-9a-f]{8}$/, "$1");
}

export function requestColor(requestId) {
  const key = answerId(requestId);
  let color = colors.get(key);
  if (!color) {
    // Steps of the golden angle: neighbours in time are far apart in hue.
    const hue = Math.round((count * 137.5 + 210) % 360);
    const lightness = [52, 62, 44][count % 3];
    color = `hsl(${hue} 62% ${lightness}%)`;
    count += 1;
    colors.set(key, color);
    if (colors.size > MAX_REMEMBERED) colors.delete(colors.keys().next().value);
  }
  return color;
}

// The id without what all have in common, and without what nobody reads: chatcmpl-5f0c9b...e1-0a1b2c3d/1 is 5f0c9b/1.
export function shortId(requestId) {
  const [, start, number = ""] = /^(?:c(?:hatc)?mpl-)?(.{1,6}).*?(\/\d+|-\d{1,4})?$/.exec(requestId);
  return start + number;
}
