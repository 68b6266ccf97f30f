// A colour for each request, the same wherever it is shown.

const colors = new Map();
const MAX_REMEMBERED = 2000;
let count = 0;

// The API's id and the engine's differ in what follows the first: the number of the completion or of the prompt.
function base(requestId) {
  return /^((?:chatcmpl|cmpl)-[0-9a-zA-Z]+)/.exec(requestId)?.[1] ?? requestId;
}

export function requestColor(requestId) {
  const key = base(requestId);
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

// The id without what all have in common.
export function shortId(requestId) {
  const rest = requestId.replace(/^(chatcmpl|cmpl)-/, "");
  return rest.length > 8 ? `${rest.slice(0, 8)}…` : rest;
}
