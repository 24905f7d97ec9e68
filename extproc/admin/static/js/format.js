// How values read. A dash where nobody has said.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const DASH = "–";
export const count = (value) => (value === null || value === undefined ? DASH : whole.format(value));
export const brief = (value) => (value === null || value === undefined ? DASH : value < 10000 ? whole.format(value) : short.format(value));
export const percent = (share) => (share === null || share === undefined ? DASH : `${Math.round(share * 100)}%`);
export const bytes = (value) => (value === null || value === undefined ? DASH : `${(value / 2 ** 30).toFixed(1)} GiB`);

export function ms(value) {
  if (value === null || value === undefined) return DASH;
  if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
  if (value >= 10) return `${whole.format(value)} ms`;
  return `${value.toFixed(value >= 1 ? 1 : 2)} ms`;
}

export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

export function clock(unix) {
  return new Date(unix * 1000).toLocaleTimeString("en-GB");
}

export const plural = (n, word) => `${whole.format(n)} ${word}${n === 1 ? "" : "s"}`;
