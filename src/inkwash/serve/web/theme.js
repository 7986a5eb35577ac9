// Before the first paint: the colours that were chosen here before. A classic script, because a module runs too late.
{
  const chosen = localStorage.getItem("inkwash.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}
